//! The whole pipeline with its threads, over a log in memory and a ledger in a file.

use std::{path::Path, sync::Arc, time::Duration};

use dibs_flow::{Claimed, Flow, FlowConfig, IssueError, Secret, Unanswered, audit::audit, gate::Gate};
use dibs_ledger::{Ledger, SqliteLedger};
use dibs_log::{Call, MemoryStorage, Store, StoreConfig};
use dibs_model::{CampaignId, CampaignSpec, CodeSource, Command, Pattern, Timestamp, Verdict};

const EIO: i32 = 5;

fn start(storage: &MemoryStorage) -> Flow {
    let store = Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap();
    let config = FlowConfig { issue_grace: Duration::ZERO, ..FlowConfig::default() };
    Flow::start(Arc::new(store), &Secret::new([1; 32]), &config).unwrap()
}

fn ledger(folder: &Path) -> Arc<SqliteLedger> {
    Arc::new(SqliteLedger::open(folder.join("ledger.db")).unwrap())
}

async fn create(flow: &Flow, id: &str, codes: CodeSource) {
    let spec = CampaignSpec {
        title: id.into(),
        stock: 3,
        opens_at: Timestamp(0),
        closes_at: Timestamp::NEVER,
        per_user_limit: 1,
        codes,
        hold_seconds: 0,
        waitlist: 0,
        intake: None,
    };
    let answer = flow.partition(id).command(id, &Command::Create(Box::new(spec))).await.ok().unwrap();
    assert_eq!(answer.verdict, Verdict::Created);
}

fn generated() -> CodeSource {
    CodeSource::Pattern(Pattern::default())
}

async fn claim(flow: &Flow, campaign: &str, user: &str) -> Result<Verdict, Unanswered> {
    flow.partition(campaign).claim(campaign, user, "").await.map(|claimed| match claimed {
        Claimed::Refused(verdict) => verdict,
        Claimed::Answered(answer) => answer.verdict,
    })
}

async fn issued(flow: &Flow) {
    for partition in flow.partitions() {
        partition.issuance.reached(partition.log().high_watermark()).await;
    }
}

#[tokio::test]
async fn codes_that_come_after_their_wins_reach_the_ledger() {
    let (storage, folder) = (MemoryStorage::new(1), tempfile::tempdir().unwrap());
    let (flow, ledger) = (start(&storage), ledger(folder.path()));
    flow.issue_into(&ledger).unwrap();
    let id = CampaignId::new("c").unwrap();
    create(&flow, "c", CodeSource::Imported).await;
    flow.import_codes(&id, ["A"].into_iter()).unwrap();
    for user in ["u1", "u2", "u3"] {
        assert!(matches!(claim(&flow, "c", user).await.unwrap(), Verdict::Won { .. }));
    }
    issued(&flow).await;
    let codes = async || -> Vec<Option<String>> {
        let rows = ledger.coupons("c", 0, 10).await.unwrap();
        rows.into_iter().map(|c| c.code.map(String::from)).collect()
    };
    // The log has not been told of the import yet.
    assert_eq!(codes().await, [None, None, None]);
    flow.announce_codes(&id).await.unwrap();
    issued(&flow).await;
    assert_eq!(codes().await, [Some("A".into()), None, None]);
    flow.import_codes(&id, ["A", "B", "C", "D"].into_iter()).unwrap();
    flow.announce_codes(&id).await.unwrap();
    issued(&flow).await;
    assert_eq!(codes().await, [Some("A".into()), Some("B".into()), Some("C".into())]);
    assert_eq!(audit(flow.store(), &*ledger, flow.codes()).await.unwrap().named, [""; 0]);
    flow.stop().await;
}

#[tokio::test]
async fn a_log_older_than_its_ledger_is_refused() {
    let (storage, folder) = (MemoryStorage::new(1), tempfile::tempdir().unwrap());
    let (flow, ledger) = (start(&storage), ledger(folder.path()));
    flow.issue_into(&ledger).unwrap();
    create(&flow, "c", generated()).await;
    issued(&flow).await;
    flow.stop().await;
    let older = start(&MemoryStorage::new(2));
    let refused = |error| matches!(error, IssueError::LogBehind { partition: 0, ledger: 1, log: 0 });
    assert!(refused(older.check_ledger(&*ledger).await.unwrap_err()));
    assert!(older.issuer(&older.partitions()[0], &ledger).await.err().is_some_and(refused));
    older.stop().await;
}

#[tokio::test]
async fn after_a_failed_sync_a_server_is_not_ready_and_still_refuses_from_memory() {
    let storage = MemoryStorage::new(1);
    let flow = start(&storage);
    create(&flow, "c", generated()).await;
    claim(&flow, "c", "u1").await.unwrap();
    assert!(flow.is_ready());
    storage.fail(Call::Sync, 1, 1, EIO);
    assert_eq!(claim(&flow, "c", "u2").await.unwrap_err(), Unanswered::Unknown);
    assert!(matches!(claim(&flow, "c", "u3").await.unwrap_err(), Unanswered::Unavailable(_)));
    assert!(!flow.is_ready());
    assert!(matches!(flow.partition("c").peek("c", "u1", ""), Gate::Refuse(Verdict::AlreadyWon { rank: 1 })));
    flow.stop().await;
}

#[tokio::test]
async fn a_locked_ledger_does_not_hold_up_a_stop_for_ever_and_loses_nothing() {
    let (storage, folder) = (MemoryStorage::new(1), tempfile::tempdir().unwrap());
    let (flow, ledger) = (start(&storage), ledger(folder.path()));
    let other = rusqlite::Connection::open(folder.path().join("ledger.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    flow.issue_into(&ledger).unwrap();
    create(&flow, "c", generated()).await;
    claim(&flow, "c", "u1").await.unwrap();
    flow.stop().await;
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(ledger.coupons("c", 0, 10).await.unwrap().len(), 0);

    let flow = start(&storage);
    flow.issue_into(&ledger).unwrap();
    issued(&flow).await;
    assert_eq!(ledger.coupons("c", 0, 10).await.unwrap().len(), 1);
    flow.stop().await;
}
