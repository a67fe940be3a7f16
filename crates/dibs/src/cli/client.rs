//! The commands that talk to a running server: requests, and problems said in words.

use anyhow::{Context, anyhow};
use serde_json::Value;

/// Where the server is, and the key to it.
#[derive(clap::Args, Clone)]
pub(crate) struct Server {
    /// Where the server is
    #[arg(
        long,
        env = "DIBS_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    pub(crate) url: String,

    /// The server's admin key
    #[arg(long, env = "DIBS_ADMIN_KEY", value_name = "KEY", hide_env_values = true, global = true)]
    pub(crate) admin_key: Option<String>,

    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// An answer: its status and its body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// A refusal or an error that the server has explained; ends with exit code 1.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Server {
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Answer> {
        let request = self.agent().get(format!("{}{path}", self.base()));
        self.read(self.authorize(request).call())
    }

    pub(crate) fn post(&self, path: &str, key: Option<&str>, body: &Value) -> anyhow::Result<Answer> {
        let mut request = self.agent().post(format!("{}{path}", self.base()));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = self.authorize(request).header("content-type", "application/json");
        self.read(request.send(body.to_string()))
    }

    pub(crate) fn post_text(&self, path: &str, text: &str) -> anyhow::Result<Answer> {
        let request = self.agent().post(format!("{}{path}", self.base()));
        self.read(self.authorize(request).header("content-type", "text/plain").send(text))
    }

    fn base(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    fn agent(&self) -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).build().into()
    }

    fn authorize<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.admin_key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn read(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<Answer> {
        let mut response =
            response.with_context(|| format!("cannot reach {}: is `dibs serve` running?", self.url))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body })
    }
}

impl Answer {
    /// The body of a success, or the problem in words.
    pub(crate) fn ok(self) -> anyhow::Result<Value> {
        if self.status < 300 { Ok(self.body) } else { Err(self.problem()) }
    }

    pub(crate) fn problem(self) -> anyhow::Error {
        let text = |name: &str| self.body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (title, detail) = (text("title"), text("detail"));
        if title.is_empty() {
            return anyhow!("the server answered {}: {}", self.status, self.body);
        }
        let colon = if detail.is_empty() { "" } else { ": " };
        Refused(format!("{title}{colon}{detail} ({})", self.status)).into()
    }
}

/// Percent-encodes a path segment.
pub(crate) fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
