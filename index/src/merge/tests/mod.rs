//! The merge against tables and against a naive model.

mod hostile;
mod model;
mod random;
mod table;
