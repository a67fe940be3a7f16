//! What the settings say of listeners' security, per listener: `listener.name.NAME.SETTING` goes before `SETTING`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rustls::ServerConfig;

use super::Listener;
use crate::security::{
    Protocol,
    sasl::Mechanism,
    tls,
    users::{Passwords, plain_users},
};

/// What begins the name of a setting for one listener.
const OF_LISTENER: &str = "listener.name.";

/// TLS and SASL, as far as listeners ask for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    /// By listener's name.
    pub(crate) tls: HashMap<String, Arc<ServerConfig>>,
    /// By listener's name.
    pub(crate) mechanisms: HashMap<String, Vec<Mechanism>>,
    /// PLAIN's users with their passwords.
    pub(crate) plain: Passwords,
}

impl Security {
    /// Reads keys and certificates too. An error is a sentence for the operator.
    pub(crate) fn read(listeners: &[Listener], set: &BTreeMap<String, String>) -> Result<Security, String> {
        let mut security = Security::default();
        for listener in listeners {
            let own = format!("{OF_LISTENER}{}.", listener.name.to_ascii_lowercase());
            let setting =
                |name: &str| set.get(&format!("{own}{name}")).or_else(|| set.get(name)).map(String::as_str);
            let failed = |e| format!("listener {}: {e}", listener.name);
            if listener.protocol.tls {
                let tls = tls::server_config(setting).map_err(failed)?;
                security.tls.insert(listener.name.clone(), tls);
            }
            if listener.protocol.sasl {
                let mechanisms = mechanisms(setting("sasl.enabled.mechanisms")).map_err(failed)?;
                if mechanisms.contains(&Mechanism::Plain) {
                    let jaas = setting("plain.sasl.jaas.config").ok_or_else(|| {
                        failed(format!(
                            "PLAIN needs {own}plain.sasl.jaas.config=org.apache.kafka.common.security.plain.\
                             PlainLoginModule required user_NAME=\"PASSWORD\";"
                        ))
                    })?;
                    security.plain.extend(plain_users(jaas).map_err(failed)?);
                }
                security.mechanisms.insert(listener.name.clone(), mechanisms);
            }
        }
        Ok(security)
    }
}

/// What Kafka has under this name since it runs without ZooKeeper, and before.
const AUTHORIZERS: [&str; 2] =
    ["org.apache.kafka.metadata.authorizer.StandardAuthorizer", "kafka.security.authorizer.AclAuthorizer"];

/// That access control lists count.
#[derive(Clone, Debug)]
pub(crate) struct Authorizer {
    /// Principals that may do everything.
    pub(crate) super_users: Vec<String>,
    /// Whether what no list is about is everybody's.
    pub(crate) open: bool,
}

impl Authorizer {
    /// `None` if no class is named. An error is a sentence for the operator.
    pub(crate) fn read(class: &str, super_users: &str, open: bool) -> Result<Option<Authorizer>, String> {
        let users = super_users.split(';').map(str::trim).filter(|u| !u.is_empty());
        let super_users: Vec<String> = users.map(str::to_owned).collect();
        if let Some(wrong) = super_users.iter().find(|u| !u.contains(':')) {
            return Err(format!("super.users: {wrong:?} must be such as User:{wrong}, apart by semicolons"));
        }
        match class {
            "" if open || !super_users.is_empty() => Err(format!(
                "super.users and allow.everyone.if.no.acl.found need authorizer.class.name={}",
                AUTHORIZERS[0]
            )),
            "" => Ok(None),
            class if AUTHORIZERS.contains(&class) => Ok(Some(Authorizer { super_users, open })),
            other => Err(format!("authorizer.class.name: {other:?} is not {}", AUTHORIZERS[0])),
        }
    }
}

fn mechanisms(names: Option<&str>) -> Result<Vec<Mechanism>, String> {
    let names = names.unwrap_or_default().split(',').map(str::trim);
    let found: Vec<Mechanism> = names.filter_map(Mechanism::named).collect();
    if found.is_empty() {
        return Err("SASL needs sasl.enabled.mechanisms, some of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512".into());
    }
    Ok(found)
}

/// Gives each listener its protocol.
pub(crate) fn set_protocols(listeners: &mut [Listener], map: &str) -> Result<(), String> {
    let mut protocols = HashMap::new();
    for entry in map.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let pair = entry.split_once(':').and_then(|(name, p)| Some((name, Protocol::parse(p)?)));
        let (name, protocol) =
            pair.ok_or_else(|| format!("listener.security.protocol.map: {entry:?} is not NAME:PROTOCOL"))?;
        protocols.insert(name, protocol);
    }
    for listener in listeners {
        let known = protocols.get(&*listener.name).copied().or_else(|| Protocol::parse(&listener.name));
        listener.protocol = known.ok_or_else(|| {
            format!(
                "listener {name}: its security protocol is not known: add {name}:PLAINTEXT (or SSL, \
                 SASL_PLAINTEXT, SASL_SSL) to listener.security.protocol.map",
                name = listener.name
            )
        })?;
    }
    Ok(())
}

/// A setting's name without the listener that it is for.
pub(crate) fn without_listener(name: &str) -> &str {
    let rest = name.strip_prefix(OF_LISTENER).and_then(|rest| rest.split_once('.'));
    rest.map_or(name, |(_, setting)| setting)
}

/// A setting's name without the SASL mechanism that it is for, as in `scram-sha-256.sasl.jaas.config`.
pub(crate) fn without_mechanism(name: &str) -> &str {
    name.find(".sasl.").map_or(name, |dot| &name[dot + 1..])
}

#[cfg(test)]
mod tests {
    use crate::BrokerConfig;

    const JAAS: &str = "x.PlainLoginModule required user_kim=\"secret\";";

    #[test]
    fn listeners_speak_what_the_map_says() {
        let of = |listeners: &str, map: &str| {
            BrokerConfig::new([("listeners", listeners), ("listener.security.protocol.map", map)])
        };
        assert!(!of("IN://localhost:1", "IN:PLAINTEXT").unwrap().listeners[0].protocol.sasl);
        let unknown = of("IN://localhost:1", "OUT:PLAINTEXT").unwrap_err().to_string();
        assert!(unknown.contains("IN:PLAINTEXT"), "{unknown}");
        assert!(of("IN://localhost:1", "IN:HTTP").is_err());
    }

    #[test]
    fn sasl_needs_mechanisms_and_users() {
        let listeners = ("listeners", "SASL_PLAINTEXT://localhost:1");
        let wrong = |more: &[(&str, &str)]| {
            let all = [&[listeners], more].concat();
            BrokerConfig::new(all).unwrap_err().to_string()
        };
        assert!(wrong(&[]).contains("sasl.enabled.mechanisms"));
        assert!(wrong(&[("sasl.enabled.mechanisms", "PLAIN")]).contains("user_NAME"));
        assert!(wrong(&[("sasl.enabled.mechanisms", "GSSAPI")]).contains("SCRAM-SHA-256"));
        let config = BrokerConfig::new([
            listeners,
            ("listener.name.sasl_plaintext.sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256"),
            ("listener.name.sasl_plaintext.plain.sasl.jaas.config", JAAS),
        ]);
        let security = config.unwrap().security;
        assert_eq!(security.mechanisms["SASL_PLAINTEXT"].len(), 2);
        assert_eq!(security.plain["kim"], "secret");
    }

    #[test]
    fn an_authorizer_is_named_with_those_who_need_no_list() {
        let of = |settings: &[(&str, &str)]| BrokerConfig::new(settings.to_vec());
        let class = ("authorizer.class.name", super::AUTHORIZERS[0]);
        assert!(of(&[]).unwrap().authorizer.is_none());
        let some = of(&[class, ("super.users", "User:admin; User:CN=a,O=b")]).unwrap().authorizer.unwrap();
        assert_eq!(some.super_users, ["User:admin", "User:CN=a,O=b"]);
        let wrong = |settings: &[(&str, &str)]| of(settings).unwrap_err().to_string();
        assert!(wrong(&[class, ("super.users", "admin")]).contains("User:admin"));
        assert!(wrong(&[("super.users", "User:admin")]).contains("authorizer.class.name"));
        assert!(wrong(&[("authorizer.class.name", "com.example.Mine")]).contains("StandardAuthorizer"));
    }

    #[test]
    fn tls_needs_a_key_in_pem() {
        let wrong = |more: &[(&str, &str)]| {
            let all = [&[("listeners", "SSL://localhost:1")], more].concat();
            BrokerConfig::new(all).unwrap_err().to_string()
        };
        assert!(wrong(&[]).contains("ssl.keystore.location"));
        assert!(wrong(&[("ssl.keystore.location", "server.jks")]).contains("must be PEM"));
        let pem = [("ssl.keystore.type", "PEM"), ("ssl.keystore.location", "/nowhere.pem")];
        assert!(wrong(&pem).contains("/nowhere.pem"));
    }
}
