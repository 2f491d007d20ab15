//! The merge against tables and against a naive model.

mod model;
mod random;
mod table;
