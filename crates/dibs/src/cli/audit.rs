//! `dibs audit`: recompute every win from the log, and compare.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use dibs_flow::{
    Codes, Secret, Signatory,
    audit::{Audit as Found, audit, check_receipts},
    load_codes,
};
use dibs_ledger::{Ledger, SqliteLedger};
use serde_json::json;

use super::{Outcome, client::Server};
use crate::data;

/// `dibs audit`
#[derive(clap::Args)]
pub(crate) struct Audit {
    /// Data folder to audit offline; without it, a running server is asked to audit itself
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Offline: SQLite file of the ledger [default: ledger.db in the data folder]
    #[arg(long, value_name = "FILE", requires = "data")]
    ledger: Option<PathBuf>,

    /// Offline: receipts to check against the log, one a line
    #[arg(long, value_name = "FILE", requires = "data")]
    receipts: Option<PathBuf>,

    /// Offline: secret of the installation, where it is not in the data folder
    #[arg(long, env = "DIBS_SECRET", value_name = "HEX", hide_env_values = true)]
    secret: Option<String>,

    #[command(flatten)]
    server: Server,
}

pub(crate) fn run(args: &Audit) -> anyhow::Result<Outcome> {
    let found = match &args.data {
        Some(folder) => {
            let found = offline(args, folder)?;
            let mut shown = serde_json::to_value(&found)?;
            shown["exact"] = found.is_exact().into();
            shown
        }
        None => args.server.post("/v1/audit", None, &json!({}))?.ok()?,
    };
    if args.server.json {
        println!("{found}");
    } else {
        print(&found);
    }
    Ok(if found["exact"] == true { Outcome::Done } else { Outcome::NotExact })
}

fn print(found: &serde_json::Value) {
    for name in ["records", "campaigns", "coupons", "rows", "not_yet_issued", "receipts", "differences"] {
        println!("{:<16} {}", name.replace('_', " "), found[name]);
    }
    for difference in found["named"].as_array().into_iter().flatten() {
        println!("  {}", difference.as_str().unwrap_or_default());
    }
    println!("{}", word(found));
}

/// The audit's word.
pub(crate) fn word(found: &serde_json::Value) -> String {
    if found["exact"] == true {
        "exact: the ledger says what the log says".into()
    } else {
        format!("NOT exact: {} differences", found["differences"])
    }
}

fn offline(args: &Audit, folder: &std::path::Path) -> anyhow::Result<Found> {
    let store = data::open_existing(folder)?;
    let given = args
        .secret
        .as_deref()
        .map(|hex| Secret::from_hex(hex).context("--secret must be 64 hexadecimal digits"));
    let secret = data::secret(&store, given.transpose()?)?;
    let codes = Arc::new(Codes::new(secret.clone()));
    load_codes(&store, &codes)?;
    let path = args.ledger.clone().unwrap_or_else(|| folder.join("ledger.db"));
    if !path.is_file() {
        bail!("there is no ledger {}: `dibs replay` builds one", path.display());
    }
    let ledger =
        SqliteLedger::open(&path).with_context(|| format!("cannot open the ledger {}", path.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut found = runtime.block_on(async {
        let found = audit(&store, &ledger, &codes).await;
        ledger.close().await;
        found
    })?;
    if let Some(file) = &args.receipts {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let key = Signatory::new(&secret).public_key();
        check_receipts(&store, text.lines(), &key, &mut found)?;
    }
    store.close()?;
    Ok(found)
}
