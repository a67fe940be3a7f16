//! Figures. Everything is compared with something else in the same run, for machines differ and are noisy.

pub(crate) mod broker;
pub(crate) mod growth;
pub(crate) mod http;
pub(crate) mod process;
mod subject;
