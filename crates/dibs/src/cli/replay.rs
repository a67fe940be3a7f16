//! `dibs replay`: everything right of the log can be rebuilt from it.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use dibs_flow::{CLAIMS_TOPIC, Codes, Issuer, Secret, Throttle, load_codes, places};
use dibs_ledger::{Ledger, SqliteLedger};

use crate::data;

/// `dibs replay`
#[derive(clap::Args)]
pub(crate) struct Replay {
    /// Data folder with the log; no server may be running on it
    #[arg(long, env = "DIBS_DATA", value_name = "DIR", default_value = "dibs-data")]
    data: PathBuf,

    /// SQLite file to build; it must not exist, or be empty
    #[arg(long, value_name = "FILE")]
    into: PathBuf,

    /// Secret of the installation, where it is not in the data folder
    #[arg(long, env = "DIBS_SECRET", value_name = "HEX", hide_env_values = true)]
    secret: Option<String>,
}

pub(crate) fn run(replay: Replay) -> anyhow::Result<()> {
    let store = data::open_existing(&replay.data)?;
    let given = replay
        .secret
        .as_deref()
        .map(|hex| Secret::from_hex(hex).context("--secret must be 64 hexadecimal digits"));
    let secret = data::secret(&store, given.transpose()?)?;
    let codes = Arc::new(Codes::new(secret));
    load_codes(&store, &codes)?;
    let ledger = SqliteLedger::open(&replay.into)
        .with_context(|| format!("cannot open the ledger {}", replay.into.display()))?;
    let ledger = Arc::new(ledger);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut coupons, mut partitions) = (0, 0);
        for place in places(&store) {
            let number = place.number;
            if ledger.next_offset(number).await?.is_some_and(|next| next > 0) {
                bail!(
                    "{} is not empty: replay builds a ledger anew and deletes nothing",
                    replay.into.display()
                );
            }
            let log = store.partition(CLAIMS_TOPIC, number).expect("the topic has this partition");
            let throttle = Arc::new(Throttle::new(None));
            let issuer =
                Issuer::start(place, log, ledger.clone(), codes.clone(), throttle, None, None).await?;
            coupons += issuer.run_to_end().await?;
            partitions += 1;
        }
        println!("{coupons} coupons of {partitions} partitions written into {}", replay.into.display());
        ledger.close().await;
        anyhow::Ok(())
    })?;
    store.close()?;
    Ok(())
}
