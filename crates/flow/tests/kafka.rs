//! What other programs write: claims into `dibs.claims`, and user ids into a topic of their own.

use std::{collections::HashMap, path::Path, sync::Arc};

use dibs_flow::{
    CLAIMS_TOPIC, Codes, Flow, FlowConfig, Issuer, Secret, Throttle, audit::audit, feed, places,
};
use dibs_ledger::{Ledger, SqliteLedger};
use dibs_log::{
    Marker, MemoryStorage, Origin, PartitionLog, Store, StoreConfig,
    batch::{BatchBuilder, Batches, HEADER_BYTES, Header},
};
use dibs_model::{CampaignSpec, CodeSource, Command, IntakeFormat, IntakeTopic, Pattern, Timestamp, Verdict};
use tokio::{sync::watch, task::JoinHandle};

fn start(storage: &MemoryStorage) -> Arc<Flow> {
    let store = Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap();
    let config = FlowConfig { partitions: 2, ..FlowConfig::default() };
    Arc::new(Flow::start(Arc::new(store), &Secret::new([1; 32]), &config).unwrap())
}

fn ledger(folder: &Path, name: &str) -> Arc<SqliteLedger> {
    Arc::new(SqliteLedger::open(folder.join(name)).unwrap())
}

async fn create(flow: &Flow, id: &str, stock: u64, intake: Option<IntakeTopic>) {
    let spec = CampaignSpec {
        title: id.into(),
        stock,
        opens_at: Timestamp(0),
        closes_at: Timestamp::NEVER,
        per_user_limit: 2,
        codes: CodeSource::Pattern(Pattern::default()),
        hold_seconds: 0,
        waitlist: 0,
        intake,
    };
    let answer = flow.partition(id).command(id, &Command::Create(Box::new(spec))).await.ok().unwrap();
    assert_eq!(answer.verdict, Verdict::Created);
}

fn claim(user: &str) -> Vec<u8> {
    Command::Claim { user: user.into(), key: "".into() }.to_json()
}

/// Key and value.
type Pair<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// A batch as a client sends it.
fn batch(codec: u8, records: &[Pair<'_>]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for (key, value) in records {
        builder.push_at(1, *key, *value);
    }
    builder.finish_with(codec).unwrap()
}

async fn issued(flow: &Flow) {
    for partition in flow.partitions() {
        partition.issuance.reached(partition.log().log_end_offset()).await;
    }
}

/// Every record of a partition: key, value, headers.
type Seen = (Option<Vec<u8>>, Option<Vec<u8>>, HashMap<String, Vec<u8>>);

fn all(log: &PartitionLog) -> Vec<Seen> {
    let mut bytes = Vec::new();
    log.read(log.log_start_offset(), 1 << 20, &mut bytes).unwrap();
    let batches: Vec<_> = Batches::new(&bytes).collect::<Result<_, _>>().unwrap();
    let records = batches.iter().flat_map(|b| b.records().unwrap()).map(Result::unwrap);
    let own = |b: Option<&[u8]>| b.map(<[u8]>::to_vec);
    let header = |h: Header<'_>| (h.name.to_owned(), h.value.unwrap().to_vec());
    records.map(|r| (own(r.key), own(r.value), r.headers.iter().map(header).collect())).collect()
}

fn why(seen: &Seen) -> (u64, String, String) {
    let text = |name: &str| String::from_utf8(seen.2[name].clone()).unwrap();
    let offset = u64::from_be_bytes(seen.2["kafka_dlt-original-offset"].clone().try_into().unwrap());
    (offset, text("kafka_dlt-exception-fqcn"), text("kafka_dlt-exception-message"))
}

#[tokio::test]
async fn any_client_may_claim_and_what_is_no_claim_is_a_dead_letter_once() {
    let (storage, folder) = (MemoryStorage::new(1), tempfile::tempdir().unwrap());
    let (flow, kept) = (start(&storage), ledger(folder.path(), "a.db"));
    flow.issue_into(&kept).unwrap();
    create(&flow, "c", 100, None).await;
    let home = flow.partition("c").clone();
    let produce = |batch: &[u8]| home.log().append_batch(batch).unwrap();
    let mut users = 0;
    for codec in 0..=4 {
        let claims: Vec<_> = (0..3).map(|i| claim(&format!("u{codec}-{i}"))).collect();
        let records: Vec<_> = claims.iter().map(|v| (Some(&b"c"[..]), Some(&v[..]))).collect();
        produce(&batch(codec, &records));
        users += 3;
    }
    let other = claim("kim");
    let first = produce(&batch(
        0,
        &[(Some(b"c"), Some(b"{")), (Some(b"none"), Some(&other)), (None, Some(&other)), (Some(b"c"), None)],
    ));
    let mut torn = batch(2, &[(Some(b"c"), Some(&other)), (Some(b"c"), Some(&other))]);
    let end = torn.len();
    torn[HEADER_BYTES..end].fill(0xff);
    let crc = crc32c::crc32c(&torn[21..]);
    torn[17..21].copy_from_slice(&crc.to_be_bytes());
    produce(&torn);
    let mut headed = BatchBuilder::new();
    headed.push_with(Some(b"c"), Some(b"[]"), &[Header { name: "mine", value: Some(b"1") }]);
    produce(&headed.finish(1));
    issued(&flow).await;
    assert_eq!(kept.coupons("c", 0, 100).await.unwrap().len(), users);

    let letters = flow.store().partition("dibs.claims-dlt", home.number).unwrap();
    let seen = all(&letters);
    let reasons: Vec<_> = seen.iter().map(why).collect();
    let class = |i: usize| (reasons[i].0 - first, &*reasons[i].1);
    assert_eq!(reasons.len(), 6, "{reasons:?}");
    assert_eq!(class(0), (0, "dibs.Malformed"));
    assert_eq!(class(1), (1, "dibs.UnknownCampaign"));
    assert_eq!(class(2), (2, "dibs.Malformed"));
    assert_eq!(class(3), (3, "dibs.Malformed"));
    assert_eq!((class(4), &*reasons[4].2), ((5, "dibs.Malformed"), "the batch cannot be read"));
    assert_eq!((&seen[5].1, &seen[5].2["mine"]), (&Some(b"[]".to_vec()), &b"1".to_vec()));
    assert_eq!(seen[0].2["kafka_dlt-original-topic"], CLAIMS_TOPIC.as_bytes());
    assert_eq!(seen[0].2["kafka_dlt-original-partition"], home.number.to_be_bytes());
    assert_eq!(seen[0].2["kafka_dlt-original-timestamp"].len(), 8);
    assert_eq!((&seen[0].0, &seen[0].1), (&Some(b"c".to_vec()), &Some(b"{".to_vec())));

    assert_eq!(audit(flow.store(), &*kept, flow.codes()).await.unwrap().named, [""; 0]);
    flow.stop().await;
    // A ledger that begins anew comes to all of them again.
    let (flow, anew) = (start(&storage), ledger(folder.path(), "b.db"));
    flow.issue_into(&anew).unwrap();
    issued(&flow).await;
    assert_eq!(anew.coupons("c", 0, 100).await.unwrap().len(), users);
    let letters = flow.store().partition("dibs.claims-dlt", home.number).unwrap();
    assert_eq!(letters.high_watermark(), 6);
    flow.stop().await;
}

#[tokio::test]
async fn a_replay_keeps_no_dead_letters() {
    let (storage, folder) = (MemoryStorage::new(1), tempfile::tempdir().unwrap());
    let flow = start(&storage);
    create(&flow, "c", 1, None).await;
    let number = flow.partition("c").number;
    flow.partition("c").log().append(Some(b"c"), Some(b"{")).unwrap();
    flow.stop().await;
    let store = Arc::new(Store::open(Arc::new(storage), StoreConfig::default()).unwrap());
    let into = ledger(folder.path(), "a.db");
    for place in places(&store) {
        let log = store.partition(CLAIMS_TOPIC, place.number).unwrap();
        let codes = Arc::new(Codes::new(Secret::new([1; 32])));
        let throttle = Arc::new(Throttle::new(None));
        let issuer = Issuer::start(place, log, into.clone(), codes, throttle, None, None).await.unwrap();
        issuer.run_to_end().await.unwrap();
    }
    assert_eq!(into.next_offset(number).await.unwrap(), Some(2));
    assert!(store.topic("dibs.claims-dlt").is_none());
}

/// Feeds from the start on.
fn feeding(flow: &Arc<Flow>) -> (watch::Sender<bool>, JoinHandle<()>) {
    let (stop, stopped) = watch::channel(false);
    (stop, tokio::spawn(feed(flow.clone(), stopped)))
}

/// Waits until so many records of the campaign's partition are decided.
async fn decided(flow: &Flow, campaign: &str, records: u64) {
    let partition = flow.partition(campaign);
    loop {
        let next = partition.state().next_offset();
        if next >= records {
            return;
        }
        partition.log().committed(next).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_topic_of_user_ids_is_claims_in_its_order() {
    let (storage, folder) = (MemoryStorage::new(1), tempfile::tempdir().unwrap());
    let (flow, kept) = (start(&storage), ledger(folder.path(), "a.db"));
    flow.issue_into(&kept).unwrap();
    let intake = IntakeTopic { topic: "coupon_create".into(), format: IntakeFormat::Long };
    create(&flow, "c", 1_000, Some(intake)).await;
    flow.store().create_topic("coupon_create", 1).unwrap();
    let topic = flow.store().partition("coupon_create", 0).unwrap();
    let send = |bytes: &[u8]| {
        topic.produce(bytes, None, Origin::Verified).unwrap();
        topic.commit(1).unwrap();
    };
    let longs = |ids: std::ops::Range<i64>| -> Vec<[u8; 8]> { ids.map(i64::to_be_bytes).collect() };
    let of = |values: &[[u8; 8]]| -> Vec<u8> {
        batch(2, &values.iter().map(|v| (None, Some(&v[..]))).collect::<Vec<_>>())
    };
    send(&of(&longs(100..200)));
    send(&batch(0, &[(None, Some(b"seven")), (None, None)]));
    // Aborted, hence never said.
    let mut aborted = BatchBuilder::new();
    aborted.producer(7, 0, 0);
    aborted.transactional();
    aborted.push(None, Some(&999_i64.to_be_bytes()));
    send(&aborted.finish(1));
    let marker = Marker { producer_id: 7, producer_epoch: 0, coordinator_epoch: 0, commit: false };
    topic.append_marker(&marker, 1).unwrap();
    topic.commit(1).unwrap();
    // The same user again is another press.
    send(&of(&longs(199..201)));

    let (stop, task) = feeding(&flow);
    decided(&flow, "c", 1 + 100 + 2).await;
    stop.send_replace(true);
    task.await.unwrap();
    issued(&flow).await;
    let users = |rows: Vec<dibs_ledger::Coupon>| -> Vec<String> {
        rows.into_iter().map(|c| c.user.to_string()).collect()
    };
    let expected: Vec<String> = (100..200).chain(199..201).map(|n: i64| n.to_string()).collect();
    assert_eq!(users(kept.coupons("c", 0, 1_000).await.unwrap()), expected);
    let letters = flow.store().partition("coupon_create-dlt", 0).unwrap();
    let reasons: Vec<_> = all(&letters).iter().map(why).collect();
    assert_eq!(reasons[0], (100, "dibs.MalformedUser".into(), "a long has 8 bytes, this has 5".into()));
    assert_eq!((reasons.len(), reasons[1].0), (2, 101));
    flow.stop().await;

    // With its position lost, all comes again, and is known by its request keys.
    let flow = start(&storage);
    flow.store().remove("intake.positions").unwrap();
    flow.issue_into(&kept).unwrap();
    let topic = flow.store().partition("coupon_create", 0).unwrap();
    topic.append_batch(&of(&longs(300..301))).unwrap();
    topic.commit(1).unwrap();
    let (stop, task) = feeding(&flow);
    let coupons = async || kept.coupons("c", 0, 1_000).await.unwrap();
    while coupons().await.len() < 103 {
        issued(&flow).await;
        tokio::task::yield_now().await;
    }
    stop.send_replace(true);
    task.await.unwrap();
    let expected: Vec<String> = expected.into_iter().chain(["300".into()]).collect();
    assert_eq!(users(coupons().await), expected);
    assert_eq!(all(&flow.store().partition("coupon_create-dlt", 0).unwrap()).len(), 2);
    flow.stop().await;
}
