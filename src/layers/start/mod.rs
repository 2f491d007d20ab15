//! What is read of a layer when it comes into use, remembered for the next time.
//!
//! A program that starts reads the same parts of the same files in the same order each time, and
//! waits for each. So the spans that are asked for in the first seconds of a layer's use are noted in
//! the order they were asked for, and how far into each; the next time they are decoded ahead in that
//! order, while the program still works on what it has.
//!
//! The *course* of a layer is kept beside its index, see [`course`]. It is of no worth but speed: it is
//! written off the serving path and not synced, and one that is damaged or of another blob counts for
//! nothing.
//!
//! # When
//!
//! A start begins with the first read of a layer, or the first after a minute without any: reads that
//! the page cache answers do not come here. Where it is the first use of an image since the worker
//! began, what was read the last time is decoded from the first look-up of a name on, which comes
//! before any read. It ends after ten seconds, or when nothing was read for
//! two. Following the course never goes far: what is decoded and not asked for takes a part of the
//! span cache at most, then nothing more is decoded until something of it is. A reader who asks for
//! what comes much later in the course (another program) has it followed from there.
//!
//! Locking: one mutex a layer, held for a look at a few numbers, and taken by reads during a start
//! only.

mod course;
mod follow;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use self::course::{Course, LIMIT, Step};
pub(super) use self::follow::Following;

/// A start lasts no longer. Nearly all programs wait for something else by then.
const LENGTH: Duration = Duration::from_secs(10);
/// A start ends when nothing was read for so long.
const QUIET: Duration = Duration::from_secs(2);
/// The first read after so long begins another.
const REST: Duration = Duration::from_secs(60);

/// A reader this many steps further on is on another course. Threads and read-ahead overtake one
/// another by a few.
const FAR: usize = 16;

/// Compressed bytes that the kernel is told of before they are read: of so many steps.
const TOLD: usize = 2;

/// The starts of one layer.
#[derive(Debug)]
pub(super) struct Starts {
    base: Instant,
    /// When a read came last, in nanoseconds after `base`.
    last: AtomicU64,
    /// A start is under way.
    under_way: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is noted of the start under way, or of one that ended and is not kept yet.
    noted: Noted,
    /// What was noted before; `None` until it is looked for.
    plan: Option<Plan>,
}

#[derive(Debug, Default)]
struct Noted {
    begun: Option<Instant>,
    steps: Vec<Step>,
    places: HashMap<u32, usize>,
}

/// The course and how far it has been followed.
#[derive(Debug, Default)]
struct Plan {
    course: Course,
    places: HashMap<u32, usize>,
    next: usize,
    /// Steps before this one the kernel was told of.
    told: usize,
    /// Steps that were begun and are not done.
    again: VecDeque<Step>,
    /// There is no room for more, until a read came.
    full: bool,
}

/// Something to decode ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Next {
    /// The step.
    pub(super) step: Step,
    /// Others whose bytes will be read soon.
    pub(super) tell: Vec<Step>,
    /// There are more after it.
    pub(super) more: bool,
}

impl Starts {
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            // As if there had been none for long
            last: AtomicU64::new(0),
            under_way: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a read at `now` that needs the first `reach` bytes of a span.
    pub(super) fn note(&self, span: u32, reach: u32, now: Instant) -> Note {
        // One more, so that zero stands for never
        let at = now.saturating_duration_since(self.base).as_nanos() as u64 + 1;
        let last = self.last.swap(at, Ordering::Relaxed);
        let rested = last == 0 || Duration::from_nanos(at.saturating_sub(last)) >= REST;
        if !rested && !self.under_way.load(Ordering::Relaxed) {
            return Note::default();
        }
        let mut state = self.lock();
        let began = rested && state.noted.begin(now);
        if began {
            if let Some(plan) = &mut state.plan {
                plan.rewind();
            }
            self.under_way.store(true, Ordering::Relaxed);
        }
        let begun = state.noted.begun.unwrap_or(now);
        if now.saturating_duration_since(begun) >= LENGTH || !state.noted.add(span, reach) {
            self.under_way.store(false, Ordering::Relaxed);
        }
        let follow = state.plan.as_mut().is_none_or(|plan| plan.asked(span));
        Note { began, follow }
    }

    /// What to decode ahead next; `load` gives the course where it was not asked for before.
    pub(super) fn next(&self, load: impl FnOnce() -> Course) -> Option<Next> {
        let mut state = self.lock();
        if state.plan.is_none() {
            drop(state);
            let loaded = Plan::new(load());
            state = self.lock();
            state.plan.get_or_insert(loaded);
        }
        state.plan.as_mut()?.next()
    }

    /// A step that was begun is not done: somebody needs the thread, or there is no room for it,
    /// until a read came.
    pub(super) fn put_back(&self, step: Step, full: bool) {
        if let Some(plan) = &mut self.lock().plan {
            plan.again.push_front(step);
            plan.full |= full;
        }
    }

    /// The course to keep, once a start has ended by `now` or is taken as ended, where it says
    /// something new. `load` as in [`Self::next`].
    pub(super) fn ended(&self, now: Instant, all: bool, load: impl FnOnce() -> Course) -> Ended {
        let last = self.base + Duration::from_nanos(self.last.load(Ordering::Relaxed));
        let mut state = self.lock();
        let Some(begun) = state.noted.begun else { return Ended::Not };
        let over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let open = !all && self.under_way.load(Ordering::Relaxed);
        if open && !over(last, QUIET) && !over(begun, LENGTH) {
            return Ended::UnderWay;
        }
        self.under_way.store(false, Ordering::Relaxed);
        let noted = std::mem::take(&mut state.noted).steps;
        let old = match state.plan.take() {
            Some(plan) => plan.course,
            None => {
                drop(state);
                let loaded = load();
                state = self.lock();
                loaded
            }
        };
        let new = old.followed_by(noted);
        let changed = new != old;
        let mut plan = Plan::new(new.clone());
        // It is for the next start
        plan.next = plan.course.0.len();
        state.plan = Some(plan);
        if changed { Ended::Changed(new) } else { Ended::Not }
    }
}

/// What a read means for a start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// It is the first of a start.
    pub(super) began: bool,
    /// There may be something to decode ahead.
    pub(super) follow: bool,
}

/// How the last start stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// None has begun, or it is dealt with, or says nothing new.
    Not,
    /// It goes on.
    UnderWay,
    /// It has ended, and this is the course to keep.
    Changed(Course),
}

impl Noted {
    /// Begins anew, unless one is under way or not kept yet.
    fn begin(&mut self, now: Instant) -> bool {
        let free = self.begun.is_none();
        if free {
            self.begun = Some(now);
        }
        free
    }

    /// False once there is no room for more.
    fn add(&mut self, span: u32, reach: u32) -> bool {
        let place = *self.places.entry(span).or_insert(self.steps.len());
        match self.steps.get_mut(place) {
            Some(step) => step.reach = step.reach.max(reach),
            None => self.steps.push(Step { span, reach }),
        }
        self.steps.len() < LIMIT
    }
}

impl Plan {
    fn new(course: Course) -> Self {
        let places = course.0.iter().enumerate().map(|(place, step)| (step.span, place)).collect();
        Self { course, places, ..Self::default() }
    }

    fn rewind(&mut self) {
        (self.next, self.told, self.full) = (0, 0, false);
        self.again.clear();
    }

    /// A read asked for a span; gives whether there are steps left.
    fn asked(&mut self, span: u32) -> bool {
        self.full = false;
        if let Some(place) = self.places.get(&span).filter(|place| **place > self.next + FAR) {
            self.next = place + 1;
            self.again.clear();
        }
        self.next < self.course.0.len() || !self.again.is_empty()
    }

    fn next(&mut self) -> Option<Next> {
        if self.full {
            return None;
        }
        let step = match self.again.pop_front() {
            Some(step) => step,
            None => {
                let step = *self.course.0.get(self.next)?;
                self.next += 1;
                step
            }
        };
        let steps = &self.course.0;
        let end = (self.next + TOLD).min(steps.len());
        let begin = self.told.max(self.next).min(end);
        self.told = end.max(self.told);
        let tell = steps.get(begin..end).unwrap_or_default().to_vec();
        Some(Next { step, tell, more: self.next < steps.len() || !self.again.is_empty() })
    }
}
