//! `dibs rush`: load, and the check from the outside.

use dibs_rush::{RushArgs, RushPlan, progress_for};

use super::Outcome;

pub(crate) fn run(args: RushArgs) -> anyhow::Result<Outcome> {
    let json = args.json;
    let checked = !args.no_check;
    let plan = RushPlan::try_from(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(dibs_rush::run(plan, &*progress_for(json)))?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        dibs_rush::print(&report, &[])?;
    }
    Ok(if report.exact || !checked { Outcome::Done } else { Outcome::NotExact })
}
