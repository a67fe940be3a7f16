//! librdkafka through its Rust crate. Usage: rdkafka-suite BOOTSTRAP
//!
//! The checks run some at a time: each has topics, groups and transactional ids of its own.

mod admin;
mod consume;
mod groups;
mod kit;
mod produce;
mod transactions;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// A check, and what it is called. It fails by a panic.
type Check = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// The checks of a module, by the names of their functions.
macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        pub(crate) fn checks() -> Vec<crate::Check> {
            vec![$((concat!(module_path!(), "::", stringify!($check)), || Box::pin($check()))),*]
        }
    };
}
pub(crate) use checks;

/// How many checks run at once, and how long one may take.
const AT_ONCE: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a check, and says whether it passed.
async fn run((name, check): Check) -> bool {
    // On a thread of its own, since librdkafka's calls block.
    let outcome = spawn_blocking(move || Handle::current().block_on(check()));
    let failure = match timeout(LIMIT, outcome).await {
        Ok(Ok(())) => return true,
        Ok(Err(_)) => "see above".to_owned(),
        Err(_) => format!("it has not ended after {LIMIT:?}"),
    };
    println!("FAILED {name}: {failure}");
    false
}

#[tokio::main]
async fn main() {
    // Where it failed, without a backtrace through the runtime.
    std::panic::set_hook(Box::new(|panic| println!("{panic}")));
    let chosen = std::env::args().nth(2).unwrap_or_default();
    let checks =
        [admin::checks(), produce::checks(), consume::checks(), groups::checks(), transactions::checks()];
    let checks = checks.into_iter().flatten().filter(|(name, _)| name.contains(&chosen));
    let outcomes: Vec<bool> = stream::iter(checks).map(run).buffer_unordered(AT_ONCE).collect().await;
    let failed = outcomes.iter().filter(|passed| !**passed).count();
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    // Not by returning, which would wait for what hangs.
    std::process::exit(i32::from(failed > 0));
}
