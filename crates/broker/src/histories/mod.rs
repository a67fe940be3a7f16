//! Random histories of producing, fetching and crashing, and whether one log can have shown them. `SEEDS=10000` for
//! more of them, `SEED=17` for one again, with all that was seen in it.
//!
//! [`world`] drives the broker's own handlers over a disk that fails, in one thread; [`clients`] are the producers;
//! what they saw is a [`history`], and [`checker`], which knows nothing else, judges it.

mod checker;
mod clients;
mod history;
mod tests;
mod world;
