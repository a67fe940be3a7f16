//! Answers against `openapi.json`: the operation and the status must stand there, and the body must fit.

use std::{
    collections::BTreeSet,
    sync::{LazyLock, Mutex},
};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Reply},
    server::KEY,
};

pub(crate) static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../http/src/openapi.json")).unwrap());

/// What was seen: operations with a status, and types of problems.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) answers: Mutex<BTreeSet<(String, u16)>>,
    pub(crate) problems: Mutex<BTreeSet<String>>,
}

/// A client that knows the contract.
pub(crate) struct Api<'a> {
    pub(crate) address: String,
    seen: Option<&'a Seen>,
}

impl<'a> Api<'a> {
    pub(crate) fn new(address: &str) -> Api<'a> {
        Api { address: address.to_owned(), seen: None }
    }

    pub(crate) fn noting(address: &str, seen: &'a Seen) -> Api<'a> {
        Api { address: address.to_owned(), seen: Some(seen) }
    }

    #[track_caller]
    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let reply = Connection::open(&self.address).ask(method, path, headers, body);
        self.check(method, path, &reply);
        reply
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], b"")
    }

    /// With the admin key.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.call("POST", path, &[("authorization", &format!("Bearer {KEY}"))], body.as_bytes())
    }

    /// With the admin key and an `Idempotency-Key`.
    #[track_caller]
    pub(crate) fn keyed(&self, path: &str, key: &str, body: &Value) -> Reply {
        let headers = [("authorization", &*format!("Bearer {KEY}")), ("idempotency-key", key)];
        self.call("POST", path, &headers, body.to_string().as_bytes())
    }

    #[track_caller]
    pub(crate) fn claim(&self, campaign: &str, user: &str) -> Reply {
        self.post(&format!("/v1/campaigns/{campaign}/claims"), &json!({ "user": user }))
    }

    /// Fails unless the document has this operation with this status and a schema that the body fits.
    #[track_caller]
    pub(crate) fn check(&self, method: &str, path: &str, reply: &Reply) {
        let operation =
            operation(method, path).unwrap_or_else(|| panic!("{method} {path} is not documented"));
        let name = operation["operationId"].as_str().unwrap();
        let response = resolve(&operation["responses"][reply.status.to_string()]);
        assert!(response.is_object(), "{name} has no documented {}: {}", reply.status, reply.text());
        let media = reply.header("content-type").unwrap_or("").split(';').next().unwrap();
        let content = &response["content"][media];
        assert!(content.is_object(), "{name} {} is not documented as {media:?}", reply.status);
        for header in response["headers"].as_object().into_iter().flatten() {
            let present = reply.header(&header.0.to_ascii_lowercase()).is_some();
            assert!(present, "{name} {} lacks {}", reply.status, header.0);
        }
        if media.ends_with("json") {
            fits(&content["schema"], &reply.json(), "")
                .unwrap_or_else(|e| panic!("{name}{e}: {}", reply.text()));
        }
        if let Some(seen) = self.seen {
            seen.answers.lock().unwrap().insert((name.to_owned(), reply.status));
            if reply.status >= 400 {
                seen.problems.lock().unwrap().insert(reply.json()["type"].as_str().unwrap().to_owned());
            }
        }
    }
}

/// The operation that a request means.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let parts: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &str| {
        let wanted: Vec<&str> = template.split('/').collect();
        wanted.len() == parts.len() && wanted.iter().zip(&parts).all(|(w, p)| w.starts_with('{') || w == p)
    };
    let (_, methods) = DOCUMENT["paths"].as_object()?.iter().find(|(template, _)| fits(template))?;
    methods.get(method.to_ascii_lowercase())
}

fn resolve(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(path) => DOCUMENT.pointer(&path[1..]).unwrap_or_else(|| panic!("{path} leads nowhere")),
        None => value,
    }
}

/// A problem of a route that has no operation: unknown paths, wrong methods.
#[track_caller]
pub(crate) fn is_problem(reply: &Reply, status: u16, name: &str) {
    reply.refused(status, name);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    fits(&DOCUMENT["components"]["schemas"]["Problem"], &reply.json(), "").unwrap();
}

/// The part of JSON Schema 2020-12 that the document uses. A keyword that is not known here is an error, so
/// that nothing in the document is believed without being checked.
pub(crate) fn fits(schema: &'static Value, value: &Value, at: &str) -> Result<(), String> {
    let fail = |what: String| Err(format!("{at}: {what}"));
    for (keyword, want) in schema.as_object().expect("a schema is an object") {
        let all = || want.as_array().expect("a list").iter();
        let holds = match keyword.as_str() {
            "description" | "default" | "example" => true,
            "$ref" => return fits(resolve(schema), value, at),
            "type" => is_type(want.as_str().expect("one type"), value),
            "const" => value == want,
            "enum" => all().any(|w| w == value),
            "minimum" => value.as_i64() >= want.as_i64(),
            "maximum" => value.as_i64() <= want.as_i64(),
            "minLength" => value.as_str().is_some_and(|s| s.chars().count() as u64 >= want.as_u64().unwrap()),
            "maxLength" => value.as_str().is_some_and(|s| s.chars().count() as u64 <= want.as_u64().unwrap()),
            // The only pattern is that of campaign ids, which the server checks by the model's own rule.
            "pattern" => value.is_string(),
            "format" => value.as_str().is_some_and(|s| s.len() == 24 && s.parse::<jiff::Timestamp>().is_ok()),
            "required" => all().all(|name| value.get(name.as_str().unwrap()).is_some()),
            "additionalProperties" => {
                let known = &schema["properties"];
                value.as_object().into_iter().flatten().all(|(name, _)| known.get(name).is_some())
            }
            "properties" => {
                for (name, schema) in want.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        fits(schema, value, &format!("{at}.{name}"))?;
                    }
                }
                true
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    fits(want, item, &format!("{at}[{i}]"))?;
                }
                true
            }
            "allOf" => {
                all().try_for_each(|s| fits(s, value, at))?;
                true
            }
            "oneOf" => all().filter(|s| fits(s, value, at).is_ok()).count() == 1,
            other => return fail(format!("the schema has the unknown keyword {other}")),
        };
        if !holds {
            return fail(format!("{keyword} {want} does not hold"));
        }
    }
    Ok(())
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("unknown type {other}"),
    }
}

#[test]
fn the_validator_finds_faults() {
    let problem = &DOCUMENT["components"]["schemas"]["Problem"];
    let good = json!({"type": "urn:dibs:problem:sold_out", "title": "Sold out", "status": 409});
    assert_eq!(fits(problem, &good, ""), Ok(()));
    for (name, value) in [
        ("type", json!("urn:dibs:problem:other")),
        ("status", json!(200)),
        ("status", json!("409")),
        ("extra", json!(1)),
        ("opens_at", json!("tomorrow")),
    ] {
        let mut bad = good.clone();
        bad[name] = value;
        assert!(fits(problem, &bad, "").is_err(), "{bad}");
    }
    assert!(fits(problem, &json!({"title": "", "status": 409}), "").is_err());
}

/// The examples are what people copy.
#[test]
fn examples_fit_their_schemas() {
    for (path, methods) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap().values().map(resolve);
            for content in responses.filter_map(|r| r["content"].as_object()).flat_map(|c| c.values()) {
                if let Some(example) = content.get("example") {
                    fits(&content["schema"], example, "").unwrap_or_else(|e| panic!("{method} {path}{e}"));
                }
            }
        }
    }
}

/// The router and the document have the same routes.
#[test]
fn every_route_is_documented() {
    let mut routes = BTreeSet::new();
    for part in include_str!("../../../http/src/lib.rs").split(".route(").skip(1) {
        let path = part.split('"').nth(1).unwrap();
        let handlers = part.split("\n        .").next().unwrap();
        let of = |m: &str| handlers.contains(&format!("{m}(")).then(|| (path.to_owned(), m.to_owned()));
        routes.extend(["get", "post", "put", "delete", "patch"].into_iter().filter_map(of));
    }
    let documented = DOCUMENT["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone()))
    });
    assert_eq!(routes, documented.collect());
}

/// Every type of problem that the code can answer stands in the document and in docs/api.md, and no other does.
#[test]
fn every_problem_is_documented() {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../http/src")).unwrap();
    let files = files.map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "rs"));
    let sources: Vec<String> = files.map(|f| std::fs::read_to_string(f).unwrap()).collect();
    let mut names = BTreeSet::new();
    for part in sources.iter().flat_map(|s| s.split("Problem::new(").skip(1)) {
        // The second argument; `Problem::verdict` has it from the verdict.
        let argument = part.split(',').nth(1).unwrap().trim();
        names.extend(argument.strip_prefix('"').map(|name| name.trim_end_matches('"').to_owned()));
    }
    let verdicts = include_str!("../../../http/src/problem.rs").split("let name =").next().unwrap();
    for part in verdicts.split("            Verdict::").skip(1) {
        let variant: String = part.chars().take_while(|c| c.is_alphanumeric()).collect();
        let name: String = variant.chars().fold(String::new(), |name, c| {
            let underscore = if c.is_uppercase() && !name.is_empty() { "_" } else { "" };
            name + underscore + &c.to_lowercase().to_string()
        });
        names.insert(if name == "conflict" { "campaign_conflict".into() } else { name });
    }
    assert!(names.len() > 20, "{names:?}");
    let types = &DOCUMENT["components"]["schemas"]["Problem"]["properties"]["type"]["enum"];
    let documented =
        types.as_array().unwrap().iter().map(|t| t.as_str().unwrap().rsplit(':').next().unwrap());
    assert_eq!(
        documented.map(String::from).collect::<BTreeSet<_>>(),
        names,
        "openapi.json (left), the code (right)"
    );
    let page =
        include_str!("../../../../docs/api.md").split("## Problems").nth(1).expect("a section Problems");
    let rows = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    assert_eq!(
        rows.map(String::from).collect::<BTreeSet<_>>(),
        names,
        "docs/api.md (left), the code (right)"
    );
}

/// Every route stands in docs/api.md.
#[test]
fn every_route_is_on_the_page() {
    let page = include_str!("../../../../docs/api.md");
    for (path, methods) in DOCUMENT["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let call = format!("`{} {path}", method.to_uppercase());
            assert!(page.contains(&call), "{call}` is not in docs/api.md");
        }
    }
}
