//! `cargo xtask deny` as a test. It also has `cargo test` build xtask, which `.ci/run` then need not build again with
//! the features that xtask has when it is built alone.

use std::process::Command;

#[test]
fn every_dependency_has_a_licence_and_a_source_that_are_allowed() {
    let said = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("deny").output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}
