//! The rush against a server in this process: the exact one passes whatever happens on the way, and each bug
//! is found and named.

mod fake;

use clap::Parser;
use dibs_rush::{
    DemoArgs, Report, Row, RushArgs, RushError, RushPlan, ServerHandle, Silent, demo, run, table,
};
use fake::{Fake, Fault};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    rush: RushArgs,
}

async fn rush(fake: &Fake, more: &str) -> Result<Report, RushError> {
    rush_at(&fake.url, more).await
}

async fn rush_at(url: &str, more: &str) -> Result<Report, RushError> {
    let line = format!("rush --url {url} --campaign c --connections 16 --seed 7 {more}");
    let plan = RushPlan::try_from(Cli::parse_from(line.split_whitespace()).rush)?;
    run(plan, &Silent).await
}

/// 300 users, three presses each, 50 coupons, one claim in ten loses its connection.
async fn rush_with(fault: Fault) -> Report {
    let fake = Fake::start(fault).await;
    fake.campaign("c", 50, 1, 20);
    rush(&fake, "--users 300 --press 3 --drop 0.1").await.unwrap()
}

fn found(report: &Report, kind: &str) -> u64 {
    report.problem_kinds.get(kind).copied().unwrap_or(0)
}

#[track_caller]
fn assert_exact(report: &Report) {
    assert_eq!(report.problems, [""; 0]);
    assert!(report.checked && report.exact && report.problem_count == 0);
}

#[track_caller]
fn assert_found(report: &Report, kind: &str, words: &str) {
    assert!(found(report, kind) > 0, "{kind} is not in {:?}: {:?}", report.problem_kinds, report.problems);
    let told = report.problems.iter().any(|p| p.starts_with(kind) && p.contains(words));
    assert!(told, "{words:?} is not told in {:?}", report.problems);
    assert!(!report.exact);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_server_is_exact() {
    let report = rush_with(Fault::None).await;
    assert_exact(&report);
    assert_eq!((report.stock, report.won, report.issued, report.remaining), (50, 50, 50, 0));
    assert_eq!((report.presses, report.pressed, report.given_up), (900, 900, 0));
    assert!(report.drops > 0 && report.retries >= report.drops);
    // Each press ends with exactly one verdict; too early is asked again.
    let verdicts: u64 =
        ["won", "already_won", "sold_out"].iter().filter_map(|v| report.outcomes.get(v)).sum();
    assert_eq!(verdicts, 900);
    assert!(report.outcomes["not_open"] > 0);
    assert_eq!(report.statuses[&409], report.outcomes["sold_out"]);
    assert!(report.latency.p50_us <= report.latency.p99_us && report.latency.p99_us <= report.latency.max_us);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_on_the_way_do_not_make_it_inexact() {
    for fault in [Fault::FailsNowAndThen, Fault::DropsConnections, Fault::AnswersSlowly] {
        let report = rush_with(fault).await;
        assert_exact(&report);
        assert_eq!((report.won, report.given_up), (50, 0), "{fault:?}");
        match fault {
            Fault::FailsNowAndThen => assert!(report.statuses[&500] > 0 && report.statuses[&503] > 0),
            Fault::DropsConnections => assert!(report.outcomes["lost"] > 0),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bug_is_found_and_named() {
    let bugs = [
        (Fault::OversellsByOne, "oversold", "highest rank 51"),
        (Fault::TwoCouponsForOneUser, "issued_twice", "allowed is 1"),
        (Fault::ForgetsAWin, "acknowledged_but_missing", "was acknowledged rank 3"),
        (Fault::ReusesACode, "issued_twice", "belongs to"),
        (Fault::SameRankForTwo, "issued_twice", "rank 3 belongs to"),
        (Fault::SkipsARank, "ranks_out_of_order", "1 ranks from 4 on were given to nobody"),
        (Fault::RefusesWhileSomeAreLeft, "under_issued", "2 coupons are left"),
        (Fault::ChangesACode, "contradictory_answers", "was shown rank "),
        (Fault::LosesACoupon, "acknowledged_but_missing", "the server knows no coupon"),
        (Fault::WinsAfterSoldOut, "contradictory_answers", "was told sold out, and was acknowledged a win"),
        (Fault::ShowsSomebodyElsesWin, "unexpected_answers", "the win of another user was shown"),
        (Fault::NotInOrder, "ranks_out_of_order", "rank 4 before it at 1"),
    ];
    for (fault, kind, words) in bugs {
        assert_found(&rush_with(fault).await, kind, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_stands_still_is_found() {
    let fake = Fake::start(Fault::LedgerStandsStill).await;
    fake.campaign("c", 50, 1, 0);
    let report = rush(&fake, "--users 100 --patience 200ms").await.unwrap();
    assert_found(&report, "not_in_the_ledger", "50 coupons are won, 5 are in the ledger");
    assert_eq!(report.ledger_after_ms, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_without_an_answer_is_found_out() {
    let fake = Fake::start(Fault::DiesHalfWay).await;
    fake.campaign("c", 50, 1, 0);
    let report = rush(&fake, "--users 300 --patience 300ms").await.unwrap();
    // Half of the coupons are won, and nobody was told anything wrong: exact, though mostly without a verdict.
    assert_eq!(report.won, 25);
    assert_exact(&report);
    assert!(report.given_up > 0);
    let notes = report.notes.join("; ");
    assert!(notes.contains("presses had no verdict") && notes.contains("the last because: "), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_ends() {
    let fake = Fake::start(Fault::ThrottlesForEver).await;
    fake.campaign("c", 5, 1, 0);
    let report = rush(&fake, "--users 20 --patience 100ms").await.unwrap();
    assert_eq!((report.given_up, report.won), (20, 0));
    assert!(report.outcomes["throttled"] > 20);
    // Nothing is wrong where nothing was decided: that proves nothing.
    assert_found(&report, "unverified", "not one verdict for 20 presses");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keys_each_press_may_win() {
    let fake = Fake::start(Fault::None).await;
    fake.campaign("c", 1_000, 2, 0);
    let report = rush(&fake, "--users 100 --press 3 --keys --drop 0.1").await.unwrap();
    assert_exact(&report);
    assert_eq!((report.won, report.remaining), (200, 800));

    fake.campaign("c", 1_000, 2, 0);
    let report = rush(&fake, "--users 100 --press 3").await.unwrap();
    assert_exact(&report);
    assert_eq!(report.won, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_coupons_are_too_many_without_keys() {
    let fake = Fake::start(Fault::TwoCouponsForOneUser).await;
    fake.campaign("c", 50, 3, 0);
    let report = rush(&fake, "--users 100 --press 3").await.unwrap();
    assert_found(&report, "issued_twice", "allowed is 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_rush_of_the_same_users_is_exact() {
    let fake = Fake::start(Fault::None).await;
    fake.campaign("c", 50, 1, 0);
    assert_exact(&rush(&fake, "--users 300").await.unwrap());
    let report = rush(&fake, "--users 300").await.unwrap();
    assert_exact(&report);
    assert_eq!((report.outcomes["already_won"], report.outcomes["sold_out"]), (50, 250));
    assert!(report.notes[0].starts_with("50 coupons were won before the rush"));
}

#[tokio::test(flavor = "multi_thread")]
async fn open_mode_sends_everything() {
    let fake = Fake::start(Fault::None).await;
    fake.campaign("c", 50, 1, 0);
    let report = rush(&fake, "--users 300 --mode open --rate 5000 --ramp 0.05").await.unwrap();
    assert_exact(&report);
    assert_eq!(report.latency.count, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_creates_the_campaign_and_some_cannot_wait() {
    let fake = Fake::start(Fault::None).await;
    let report = rush(&fake, "--create-stock 20 --opens-in 1s --users 100 --early 0.3").await.unwrap();
    assert_eq!((report.early, report.presses, report.stock), (30, 130, 20));
    assert_exact(&report);
    assert_eq!(report.won, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duration_ends_the_rush() {
    let fake = Fake::start(Fault::None).await;
    fake.campaign("c", 50, 1, 0);
    let report = rush(&fake, "--users 300 --duration 0s").await.unwrap();
    assert_eq!((report.pressed, report.presses), (0, 300));
    assert_exact(&report);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_an_error() {
    let fake = Fake::start(Fault::None).await;
    let error = rush(&fake, "").await.unwrap_err().to_string();
    assert!(error.starts_with("read the campaign c: the server answers 404"), "{error}");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert!(matches!(rush_at(&nobody, "").await.unwrap_err(), RushError::NoServer { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_is_a_table_and_json() {
    let report = rush_with(Fault::OversellsByOne).await;
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["exact"], &json["oversold"]), (&false.into(), &1.into()));
    assert!(json["latency"]["p99_us"].as_u64() > Some(0));

    let plain = table(&report, &[Row::new("the audit's word", "agrees")], false);
    assert!(plain.contains("the audit's word") && plain.contains("refused: sold out"));
    assert!(plain.ends_with("  NOT EXACT\n") && !plain.contains('\x1b'));
    let row = |label: &str| plain.lines().find(|line| line.contains(label)).unwrap().to_owned();
    assert!(row("oversold ").ends_with(" 1"));
    assert_eq!(row("issued twice").chars().count(), row("claims/s").chars().count());
    assert!(table(&report, &[], true).contains("\x1b[31mNOT EXACT\x1b[0m"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_is_a_whole_rush() {
    let fake = Fake::start(Fault::None).await;
    let server = ServerHandle { url: fake.url.clone(), admin_key: Some("k".into()), pid: std::process::id() };
    let args = DemoArgs { users: 1_000, stock: 20, press: 2, connections: 16, keep: false };
    let report = demo(&args, &server, &Silent).await.unwrap();
    assert_exact(&report);
    assert_eq!((report.won, report.issued, report.presses, report.early), (20, 20, 2_050, 50));
    assert!(report.outcomes["not_open"] > 0);
    assert!(report.drops > 0 && report.ledger_after_ms.is_some() && report.server_memory.is_some());
    assert!(table(&report, &[], false).contains("last coupon in the ledger after"));
}
