//! A tiny server that keeps the contract of `docs/api.md` in memory, exactly; and, told to, breaks it in one
//! known way.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Faults of the way there that an exact server may have.
    FailsNowAndThen,
    DropsConnections,
    AnswersSlowly,
    ThrottlesForEver,
    /// Bugs.
    OversellsByOne,
    TwoCouponsForOneUser,
    ForgetsAWin,
    ReusesACode,
    SameRankForTwo,
    SkipsARank,
    RefusesWhileSomeAreLeft,
    ChangesACode,
    LosesACoupon,
    LedgerStandsStill,
    WinsAfterSoldOut,
    ShowsSomebodyElsesWin,
    NotInOrder,
    DiesHalfWay,
}

#[derive(Clone, Debug)]
struct Win {
    user: String,
    key: String,
    rank: u64,
    code: String,
    offset: u64,
}

#[derive(Default)]
struct Campaign {
    stock: u64,
    limit: u64,
    opens_at: String,
    wins: Vec<Win>,
    issued: u64,
    /// Claims so far.
    claims: u64,
    /// So many claims come too early.
    too_early: u64,
}

pub(crate) struct Fake {
    pub(crate) url: String,
    state: Arc<State>,
}

struct State {
    fault: Fault,
    campaigns: Mutex<HashMap<String, Campaign>>,
}

/// `None` closes the connection without an answer.
type Answer = Option<(u16, Value)>;

impl Fake {
    pub(crate) async fn start(fault: Fault) -> Fake {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { fault, campaigns: Mutex::default() });
        let served = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = served.clone();
                let service = service_fn(move |request| serve(state.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Fake { url, state }
    }

    /// A campaign whose first `too_early` claims come before the opening.
    pub(crate) fn campaign(&self, id: &str, stock: u64, limit: u64, too_early: u64) {
        let opens_at = "2026-01-01T00:00:00.000Z".to_owned();
        let campaign = Campaign { stock, limit, opens_at, too_early, ..Campaign::default() };
        self.state.campaigns.lock().unwrap().insert(id.to_owned(), campaign);
    }
}

/// The service's error: hyper closes the connection.
#[derive(Debug)]
struct Hangup;

impl std::fmt::Display for Hangup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hangs up")
    }
}

impl std::error::Error for Hangup {}

async fn serve(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Hangup> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = request.method().clone();
    let key = request.headers().get("idempotency-key").map(|v| v.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.map_err(|_| Hangup)?.to_bytes();
    if state.fault == Fault::AnswersSlowly {
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let Some((status, json)) = state.answer(&method, &path, &query, &key.unwrap_or_default(), &body) else {
        return Err(Hangup);
    };
    let response = Response::builder().status(status).header("content-type", "application/json");
    let response = if status == 429 { response.header("retry-after", "0") } else { response };
    Ok::<_, Infallible>(response.body(Full::from(json.to_string())).unwrap()).map_err(|never| match never {})
}

fn problem(status: u16, verdict: &str) -> Answer {
    Some((
        status,
        json!({"type": format!("urn:dibs:problem:{verdict}"), "status": status, "verdict": verdict}),
    ))
}

impl State {
    fn answer(&self, method: &Method, path: &str, query: &str, key: &str, body: &[u8]) -> Answer {
        let mut campaigns = self.campaigns.lock().unwrap();
        let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
        if *method == Method::POST && parts == ["campaigns"] {
            let json: Value = serde_json::from_slice(body).unwrap();
            let opens_at = json["opens_at"].as_str().unwrap().to_owned();
            let (stock, limit) = (json["stock"].as_u64().unwrap(), 1);
            let campaign = Campaign { stock, limit, opens_at, ..Campaign::default() };
            campaigns.insert(json["id"].as_str().unwrap().to_owned(), campaign);
            return Some((201, json!({})));
        }
        if let ["coupons", code] = parts[..] {
            let campaign = query.strip_prefix("campaign=").and_then(|id| campaigns.get(id));
            let mut wins = campaign.iter().flat_map(|c| &c.wins);
            let win = wins.find(|win| win.code == code && self.shows(win));
            return win.map_or_else(|| problem(404, "unknown_coupon"), |win| Some((200, shown("won", win))));
        }
        let Some(campaign) = campaigns.get_mut(parts[1]) else { return problem(404, "unknown_campaign") };
        match parts[2..] {
            [] => Some((200, self.show(campaign))),
            ["claims"] => {
                let json: Value = serde_json::from_slice(body).unwrap();
                self.claim(campaign, json["user"].as_str().unwrap(), key)
            }
            ["claims", user] => {
                let win = campaign.wins.iter().rev().find(|win| win.user == user);
                win.map_or_else(|| problem(404, "no_claim"), |win| Some((200, shown("won", win))))
            }
            _ => problem(404, "unknown"),
        }
    }

    fn show(&self, campaign: &mut Campaign) -> Value {
        let won = campaign.wins.len() as u64;
        // The issuer lags: some rows between two looks.
        campaign.issued = (campaign.issued + 1 + campaign.stock / 4).min(won);
        if self.fault == Fault::LedgerStandsStill {
            campaign.issued = campaign.issued.min(5);
        }
        json!({"id": "c", "state": "open", "stock": campaign.stock, "won": won, "held": 0,
            "remaining": campaign.stock.saturating_sub(won), "issued": campaign.issued,
            "opens_at": campaign.opens_at, "per_user_limit": campaign.limit, "hold_seconds": 0, "waitlist": 0})
    }

    /// The coupon with rank 3 is the one that a bug loses.
    fn shows(&self, win: &Win) -> bool {
        !(self.fault == Fault::LosesACoupon && win.rank == 3)
    }

    fn claim(&self, campaign: &mut Campaign, user: &str, key: &str) -> Answer {
        campaign.claims += 1;
        let n = campaign.claims;
        match self.fault {
            Fault::ThrottlesForEver => return problem(429, "throttled"),
            Fault::FailsNowAndThen if n.is_multiple_of(7) => return problem(503, "unavailable"),
            Fault::DropsConnections if n.is_multiple_of(7) => return None,
            Fault::DiesHalfWay if n > campaign.stock / 2 => return None,
            _ => {}
        }
        let answer = self.decide(campaign, user, key);
        match self.fault {
            // Decided, and the answer is lost.
            Fault::FailsNowAndThen if n.is_multiple_of(5) => problem(500, "internal"),
            Fault::DropsConnections if n.is_multiple_of(5) => None,
            _ => answer,
        }
    }

    fn decide(&self, campaign: &mut Campaign, user: &str, key: &str) -> Answer {
        let offset = 1_000 + campaign.claims;
        if self.fault == Fault::ForgetsAWin && campaign.wins.len() as u64 == campaign.stock {
            // Rank 3 loses its user, not its unit.
            campaign.wins[2].user = String::from("nobody");
        }
        let mine: Vec<&Win> = campaign.wins.iter().filter(|win| win.user == user).collect();
        let earlier = mine.iter().find(|win| win.key == key).or_else(|| {
            let full = mine.len() as u64 >= campaign.limit;
            mine.last().filter(|_| full)
        });
        let again = self.fault == Fault::TwoCouponsForOneUser && mine.len() == 1 && mine[0].rank <= 10;
        if let Some(win) = earlier
            && !again
        {
            let mut win = Win::clone(win);
            if self.fault == Fault::ChangesACode && win.rank <= 10 {
                win.code.push('X');
            }
            if self.fault == Fault::ShowsSomebodyElsesWin && win.rank == 3 {
                win.user = "somebody".to_owned();
            }
            return Some((200, shown("already_won", &win)));
        }
        let opens_at = humantime::parse_rfc3339(&campaign.opens_at).unwrap();
        if campaign.claims <= campaign.too_early || SystemTime::now() < opens_at {
            return problem(425, "not_open");
        }
        let won = campaign.wins.len() as u64;
        let stock = match self.fault {
            Fault::OversellsByOne => campaign.stock + 1,
            Fault::RefusesWhileSomeAreLeft => campaign.stock - 2,
            _ => campaign.stock,
        };
        if won >= stock {
            return problem(409, "sold_out");
        }
        // Refused once, in the middle; the next press of the same user may win.
        if self.fault == Fault::WinsAfterSoldOut && won < 45 && campaign.claims.is_multiple_of(2) {
            return problem(409, "sold_out");
        }
        let mut win = Win { user: user.into(), key: key.into(), rank: won + 1, code: code(won + 1), offset };
        match self.fault {
            Fault::ReusesACode if win.rank == 4 => win.code = code(3),
            Fault::SameRankForTwo if win.rank == 4 => win.rank = 3,
            Fault::SkipsARank if win.rank >= 4 => win.rank += 1,
            Fault::NotInOrder if win.rank == 4 => win.offset = 1,
            _ => {}
        }
        campaign.wins.push(win.clone());
        Some((201, shown("won", &win)))
    }
}

fn code(rank: u64) -> String {
    format!("CODE-{:04}", rank * 7_919 % 10_000)
}

fn shown(verdict: &str, win: &Win) -> Value {
    json!({"verdict": verdict, "campaign": "c", "user": win.user, "rank": win.rank, "state": "won",
        "code": win.code, "claim": {"partition": 0, "offset": win.offset, "timestamp": "2026-01-01T00:00:00Z"},
        "issuance": {"state": "issued"}, "receipt": "r"})
}
