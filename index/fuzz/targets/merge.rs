//! The merge of small stacks of layers, against a naive unpacker.
//!
//! Invariants: no panic; the builder refuses what the model refuses; merge and model take the same
//! stacks; the tree can be opened, and walked it shows the same paths, inodes, attributes, link counts
//! and content as the model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peel_index_fuzz::{input::Input, stack};

fuzz_target!(|data: &[u8]| stack::compare(stack::layers(&mut Input::new(data))));
