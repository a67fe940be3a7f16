//! Opening a data folder: the lock, the log, the secret.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, anyhow, bail};
use dibs_flow::Secret;
use dibs_log::{DiskStorage, Store, StoreConfig, TOPICS_FILE};

const SECRET: &str = "secret.key";

/// Takes the folder; what recovery found is logged. `defaults` are configurations of topics that say nothing else.
pub(crate) fn open(folder: &Path, defaults: BTreeMap<String, String>) -> anyhow::Result<Arc<Store>> {
    let storage = DiskStorage::new(folder)
        .with_context(|| format!("cannot use the data folder {}", folder.display()))?;
    let store = Store::open(Arc::new(storage), StoreConfig { defaults, ..StoreConfig::default() })
        .with_context(|| format!("cannot open the log in {}", folder.display()))?;
    for found in store.recovery() {
        tracing::debug!(?found, "recovered");
    }
    Ok(Arc::new(store))
}

/// Takes a folder that a server has used, and makes none.
pub(crate) fn open_existing(folder: &Path) -> anyhow::Result<Arc<Store>> {
    let missing = |what: &str| anyhow!("{} is no data folder of dibs: it has no {what}", folder.display());
    if !folder.join(TOPICS_FILE).is_file() {
        return Err(missing(TOPICS_FILE));
    }
    let store = open(folder, BTreeMap::new())?;
    let topic = store.topic(dibs_flow::CLAIMS_TOPIC);
    topic.is_some().then_some(store).ok_or_else(|| missing(dibs_flow::CLAIMS_TOPIC))
}

/// The secret of an installation: the one given, or the folder's, made at the first start.
pub(crate) fn secret(store: &Store, given: Option<Secret>) -> anyhow::Result<Secret> {
    if let Some(secret) = given {
        return Ok(secret);
    }
    match store.get(SECRET).context("cannot read the secret")? {
        Some(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Secret::from_hex(&text).with_context(|| format!("{SECRET} in the data folder is damaged"))
        }
        None => {
            if store.topics().iter().any(|(name, _)| name == dibs_flow::CLAIMS_TOPIC) {
                bail!(
                    "the data folder has claims but no {SECRET}: restore it, or give the secret by --secret; with \
                     another one every coupon would get another code"
                );
            }
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).context("the operating system gives no randomness")?;
            let secret = Secret::new(bytes);
            store
                .put(SECRET, format!("{}\n", secret.to_hex()).as_bytes())
                .context("cannot keep the secret")?;
            Ok(secret)
        }
    }
}
