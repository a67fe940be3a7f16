//! Clients that press, retry and remember what they were told.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;

use crate::http::{Connection, Reply};

/// Connections, each with one press at a time.
const CLIENTS: u64 = 8;
/// How long a client waits after an answer that tells it to ask again, or none.
const PAUSE: Duration = Duration::from_millis(5);

/// A campaign as the load knows it.
#[derive(Clone, Debug)]
pub(crate) struct Campaign {
    pub(crate) id: String,
    pub(crate) stock: u64,
    pub(crate) per_user: u32,
    /// Seconds within which a win must be confirmed, 0 for none.
    pub(crate) hold: u32,
    pub(crate) waitlist: u64,
}

impl Campaign {
    /// One of each kind: plain; two for each user; held, with a waitlist.
    pub(crate) fn trio(name: &str, stock: u64) -> Vec<Campaign> {
        let plain = Campaign { id: format!("plain-{name}"), stock, per_user: 1, hold: 0, waitlist: 0 };
        let two = Campaign { id: format!("two-{name}"), per_user: 2, ..plain.clone() };
        let held = Campaign {
            id: format!("held-{name}"),
            stock: stock / 10,
            hold: 2,
            waitlist: stock / 20,
            ..plain.clone()
        };
        vec![plain, two, held]
    }

    pub(crate) fn create(&self, connection: &mut Connection) -> anyhow::Result<()> {
        let body = json!({
            "id": self.id, "stock": self.stock, "per_user_limit": self.per_user,
            "hold_seconds": self.hold, "waitlist": self.waitlist,
        });
        let reply = connection.call("POST", "/v1/campaigns", "", Some(&body))?;
        ensure!(reply.status == 201, "creating {} is answered {} {}", self.id, reply.status, reply.body);
        Ok(())
    }
}

/// One press of one user.
#[derive(Clone, Debug)]
pub(crate) struct Press {
    pub(crate) campaign: Arc<Campaign>,
    pub(crate) user: String,
    pub(crate) key: &'static str,
}

impl Press {
    pub(crate) fn send(&self, connection: &mut Connection) -> std::io::Result<Reply> {
        let path = format!("/v1/campaigns/{}/claims", self.campaign.id);
        connection.call("POST", &path, self.key, Some(&json!({"user": self.user})))
    }
}

/// An acknowledged win.
#[derive(Clone, Debug)]
pub(crate) struct Win {
    pub(crate) press: Press,
    pub(crate) rank: u64,
    /// None while it is held.
    pub(crate) code: Option<String>,
    /// When the answer was read.
    pub(crate) at: Instant,
    /// This very press won; otherwise the user had the win already.
    pub(crate) first: bool,
}

/// What the clients were told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) wins: Vec<Win>,
    /// Presses without an answer.
    pub(crate) unknown: Vec<Press>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Asked to come back without being told when.
    pub(crate) no_retry_after: u64,
    /// When the answer was read, and how long it took.
    pub(crate) latencies: Vec<(Instant, Duration)>,
}

/// A rush in progress.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Told>>,
}

impl Load {
    /// Starts pressing for some campaigns. Users' names begin with `name`.
    pub(crate) fn start(
        address: SocketAddr,
        campaigns: &[Campaign],
        name: &str,
        random: &mut fastrand::Rng,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let campaigns: Vec<_> = campaigns.iter().cloned().map(Arc::new).collect();
        let client = |number: u64| {
            let client = Client {
                address,
                connection: None,
                campaigns: campaigns.clone(),
                name: format!("{name}-{number}"),
                shared: format!("{name}-shared"),
                random: random.fork(),
                pressed: 0,
                told: Told::default(),
            };
            let stop = stop.clone();
            thread::spawn(move || client.run(&stop))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Load { stop, clients }
    }

    /// Lets every client read its last answer, and gathers what they were told.
    pub(crate) fn end(self) -> Told {
        self.stop.store(true, Relaxed);
        let mut all = Told::default();
        for client in self.clients {
            let told = client.join().expect("clients do not panic");
            all.wins.extend(told.wins);
            all.unknown.extend(told.unknown);
            all.latencies.extend(told.latencies);
            all.no_retry_after += told.no_retry_after;
            for (status, count) in told.statuses {
                *all.statuses.entry(status).or_default() += count;
            }
        }
        all
    }
}

struct Client {
    address: SocketAddr,
    connection: Option<Connection>,
    campaigns: Vec<Arc<Campaign>>,
    name: String,
    /// Begins the names of users that press on several connections at once.
    shared: String,
    random: fastrand::Rng,
    pressed: u64,
    told: Told,
}

impl Client {
    fn run(mut self, stop: &AtomicBool) -> Told {
        while !stop.load(Relaxed) {
            let press = self.next_press();
            if !self.press(press) {
                thread::sleep(PAUSE);
            }
        }
        self.told
    }

    fn next_press(&mut self) -> Press {
        let campaign = self.campaigns[self.random.usize(..self.campaigns.len())].clone();
        self.pressed += 1;
        let user = match self.random.u32(..10) {
            0 => format!("{}-{}", self.shared, self.random.u32(..200)),
            1 | 2 => format!("{}-{}", self.name, self.random.u64(..self.pressed)),
            _ => format!("{}-{}", self.name, self.pressed),
        };
        let key = if campaign.per_user > 1 { ["k1", "k2", "k3"][self.random.usize(..3)] } else { "" };
        Press { campaign, user, key }
    }

    /// Says whether there was an answer that is final.
    fn press(&mut self, press: Press) -> bool {
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(self.address),
        };
        // Nobody there: nothing was asked.
        let Ok(mut connection) = connection else { return false };
        let start = Instant::now();
        let Ok(reply) = press.send(&mut connection) else {
            self.told.unknown.push(press);
            return false;
        };
        let at = Instant::now();
        self.told.latencies.push((at, at - start));
        *self.told.statuses.entry(reply.status).or_default() += 1;
        let won = win(&press, &reply, at);
        if matches!(reply.status, 429 | 503) {
            self.told.no_retry_after += u64::from(!reply.retry_after);
            self.told.unknown.push(press.clone());
        }
        self.connection = Some(connection);
        if let Some(won) = won {
            if won.first && press.campaign.hold > 0 {
                self.afterwards(&press);
            }
            self.told.wins.push(won);
        }
        !matches!(reply.status, 429 | 503)
    }

    /// Some keep a held win, some give it up, some forget it.
    fn afterwards(&mut self, press: &Press) {
        let what = match self.random.u32(..4) {
            0 | 1 => "confirm",
            2 => "cancel",
            _ => return,
        };
        let path = format!("/v1/campaigns/{}/claims/{}/{what}", press.campaign.id, press.user);
        if let Some(mut connection) = self.connection.take()
            && connection.call("POST", &path, "", None).is_ok()
        {
            self.connection = Some(connection);
        }
    }
}

/// The win in an answer.
pub(crate) fn win(press: &Press, reply: &Reply, at: Instant) -> Option<Win> {
    if !matches!(reply.status, 200 | 201) {
        return None;
    }
    let rank = reply.body["rank"].as_u64()?;
    let code = reply.body["code"].as_str().map(String::from);
    Some(Win { press: press.clone(), rank, code, at, first: reply.body["verdict"] == "won" })
}
