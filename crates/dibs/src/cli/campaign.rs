//! `dibs campaign …`, `dibs claim`, `dibs coupon …`: the API from the shell.

use std::{io::Read, path::PathBuf};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Server, segment};

/// `dibs campaign …`
#[derive(Subcommand)]
pub(crate) enum Campaign {
    /// Create a campaign; again with the same content it is the same campaign
    Create(Create),
    /// List all campaigns
    List,
    /// Show one campaign
    Show {
        /// The campaign
        id: String,
    },
    /// Add to the stock
    Restock {
        /// The campaign
        id: String,
        /// How many coupons more
        units: u64,
        /// The same key again is a retry and adds nothing
        #[arg(long)]
        key: Option<String>,
    },
    /// Suspend claims
    Pause {
        /// The campaign
        id: String,
    },
    /// End a pause
    Resume {
        /// The campaign
        id: String,
    },
    /// End a campaign for good
    Close {
        /// The campaign
        id: String,
    },
    /// Import partner codes, one a line, before the campaign is created with --imported-codes
    ImportCodes {
        /// The campaign
        id: String,
        /// The file; - for standard input
        file: PathBuf,
    },
}

/// `dibs campaign create`
#[derive(clap::Args)]
pub(crate) struct Create {
    /// Its id: letters, digits, - _ .
    id: String,
    /// How many coupons there are
    #[arg(long)]
    stock: u64,
    /// Title for people [default: the id]
    #[arg(long)]
    title: Option<String>,
    /// When it opens, such as 2026-07-01T12:00:00Z [default: at once]
    #[arg(long, value_name = "TIME")]
    opens_at: Option<String>,
    /// When it closes [default: never]
    #[arg(long, value_name = "TIME")]
    closes_at: Option<String>,
    /// Coupons for one user
    #[arg(long, value_name = "N", default_value_t = 1)]
    per_user_limit: u32,
    /// Form of the codes; each # becomes a secret symbol [default: ####-####-####]
    #[arg(long, value_name = "PATTERN", conflicts_with = "imported_codes")]
    code_pattern: Option<String>,
    /// Give out the imported codes, in their order
    #[arg(long)]
    imported_codes: bool,
    /// A win must be confirmed within so many seconds; 0 for no confirmation
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    hold_seconds: u32,
    /// How many may wait for a unit that becomes free
    #[arg(long, value_name = "N", default_value_t = 0)]
    waitlist: u64,
    /// Topic of user ids that claims are taken from too
    #[arg(long, value_name = "TOPIC")]
    intake_topic: Option<String>,
    /// How its values name a user: string, long (Java's, 8 bytes) or json [default: string]
    #[arg(long, value_name = "FORMAT", requires = "intake_topic", value_parser = ["string", "long", "json"])]
    intake_format: Option<String>,
}

impl Create {
    fn body(&self) -> Value {
        let mut body = json!({
            "id": self.id, "stock": self.stock, "per_user_limit": self.per_user_limit,
            "hold_seconds": self.hold_seconds, "waitlist": self.waitlist,
        });
        let optional = [
            ("title", &self.title),
            ("opens_at", &self.opens_at),
            ("closes_at", &self.closes_at),
            ("code_pattern", &self.code_pattern),
            ("intake_topic", &self.intake_topic),
            ("intake_format", &self.intake_format),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                body[name] = value.as_str().into();
            }
        }
        if self.imported_codes {
            body["imported_codes"] = true.into();
        }
        body
    }
}

pub(crate) fn campaign(command: &Campaign, server: &Server) -> anyhow::Result<()> {
    let change = |id: &str, what: &str| {
        server.post(&format!("/v1/campaigns/{}/{what}", segment(id)), None, &json!({}))
    };
    let shown = match command {
        Campaign::Create(create) => server.post("/v1/campaigns", None, &create.body())?,
        Campaign::List => return list(server),
        Campaign::Show { id } => server.get(&format!("/v1/campaigns/{}", segment(id)))?,
        Campaign::Restock { id, units, key } => {
            let path = format!("/v1/campaigns/{}/restock", segment(id));
            server.post(&path, key.as_deref(), &json!({ "units": units }))?
        }
        Campaign::Pause { id } => change(id, "pause")?,
        Campaign::Resume { id } => change(id, "resume")?,
        Campaign::Close { id } => change(id, "close")?,
        Campaign::ImportCodes { id, file } => {
            let text = read(file)?;
            let body = server.post_text(&format!("/v1/campaigns/{}/codes", segment(id)), &text)?.ok()?;
            return print(server, &body, |b| {
                format!("{} codes imported, {} in all\n", b["imported"], b["total"])
            });
        }
    };
    print(server, &shown.ok()?, |body| members(body, ""))
}

fn read(file: &PathBuf) -> anyhow::Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn list(server: &Server) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let page = server.get(&format!("/v1/campaigns?limit=1000{after}"))?.ok()?;
        all.extend(page["campaigns"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", segment(next)),
            None => break,
        }
    }
    print(server, &json!(all), |_| {
        let mut out = format!(
            "{:<24} {:<10} {:>10} {:>10} {:>10} {:>10}\n",
            "ID", "STATE", "STOCK", "WON", "REMAINING", "ISSUED"
        );
        for c in &all {
            let text = |name: &str| c[name].as_str().unwrap_or_default();
            out.push_str(&format!(
                "{:<24} {:<10} {:>10} {:>10} {:>10} {:>10}\n",
                text("id"),
                text("state"),
                c["stock"],
                c["won"],
                c["remaining"],
                c["issued"]
            ));
        }
        out
    })
}

/// `dibs claim`
#[derive(clap::Args)]
pub(crate) struct Claim {
    /// The campaign
    campaign: String,
    /// The user
    user: String,
    /// Tells two presses of one user from one press and its retry
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    server: Server,
}

pub(crate) fn claim(claim: &Claim) -> anyhow::Result<()> {
    let path = format!("/v1/campaigns/{}/claims", segment(&claim.campaign));
    let answer = claim.server.post(&path, claim.key.as_deref(), &json!({ "user": claim.user }))?;
    print(&claim.server, &answer.ok()?, |body| members(body, ""))
}

/// `dibs coupon …`
#[derive(Subcommand)]
pub(crate) enum Coupon {
    /// Show a coupon
    Show {
        /// Its code
        code: String,
    },
    /// Use a coupon, once
    Redeem {
        /// Its code
        code: String,
        /// Who uses it: a till, a shop, a person
        #[arg(long)]
        by: String,
        /// The same key again is a retry
        #[arg(long)]
        key: Option<String>,
    },
    /// Take a use back
    Unredeem {
        /// Its code
        code: String,
    },
}

pub(crate) fn coupon(command: &Coupon, server: &Server) -> anyhow::Result<()> {
    let answer = match command {
        Coupon::Show { code } => server.get(&format!("/v1/coupons/{}", segment(code)))?,
        Coupon::Redeem { code, by, key } => {
            let path = format!("/v1/coupons/{}/redeem", segment(code));
            server.post(&path, key.as_deref(), &json!({ "by": by }))?
        }
        Coupon::Unredeem { code } => {
            server.post(&format!("/v1/coupons/{}/unredeem", segment(code)), None, &json!({}))?
        }
    };
    print(server, &answer.ok()?, |body| members(body, ""))
}

/// JSON for a script, lines for a person.
fn print(server: &Server, body: &Value, lines: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
    use std::io::Write;
    let text = if server.json { format!("{body}\n") } else { lines(body) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// One member a line, nested ones with a dot.
fn members(body: &Value, prefix: &str) -> String {
    let mut out = String::new();
    for (name, value) in body.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => out.push_str(&members(value, &format!("{prefix}{name}."))),
            Value::String(text) => out.push_str(&format!("{:<18} {text}\n", format!("{prefix}{name}"))),
            other => out.push_str(&format!("{:<18} {other}\n", format!("{prefix}{name}"))),
        }
    }
    out
}
