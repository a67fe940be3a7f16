//! The suite that every implementation of [`Ledger`](crate::Ledger) must pass.
