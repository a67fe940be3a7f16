//! Who may do what: Kafka's access control lists, with the rules of its `StandardAuthorizer`.

use std::{
    collections::BTreeSet,
    io,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use data_encoding::BASE64;

use crate::topics::Topics;

/// The small file with the lists: a line `resource pattern operation permission name principal host` each, the last
/// three in base64.
const FILE: &str = "acls";
/// Every name, principal or host.
const ANYTHING: &str = "*";
/// The one resource of its kind.
pub(crate) const CLUSTER: &str = "kafka-cluster";

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum $name { $($variant = $code,)* }

        impl $name {
            pub(crate) const ALL: &[$name] = &[$($name::$variant,)*];

            /// The one with this number in the protocol.
            pub(crate) fn numbered(code: i8) -> Option<$name> {
                $name::ALL.iter().copied().find(|v| *v as i8 == code)
            }
        }
    };
}

codes! {
    /// What is protected.
    Kind { Topic = 2, Group = 3, Cluster = 4, TransactionalId = 5, DelegationToken = 6, User = 7, }
}
codes! {
    /// How a list names what it protects.
    Pattern { Literal = 3, Prefixed = 4, }
}
codes! {
    /// What is done.
    Operation {
        All = 2, Read = 3, Write = 4, Create = 5, Delete = 6, Alter = 7, Describe = 8, ClusterAction = 9,
        DescribeConfigs = 10, AlterConfigs = 11, IdempotentWrite = 12, CreateTokens = 13, DescribeTokens = 14,
        TwoPhaseCommit = 15,
    }
}
codes! {
    /// Whether it may be done. A denial outweighs every permission.
    Permission { Deny = 2, Allow = 3, }
}

impl Kind {
    /// What can be done to one.
    pub(crate) fn operations(self) -> &'static [Operation] {
        use Operation::*;
        match self {
            Kind::Topic => &[Read, Write, Create, Describe, Delete, Alter, DescribeConfigs, AlterConfigs],
            Kind::Group => &[Read, Describe, Delete, DescribeConfigs, AlterConfigs],
            Kind::Cluster => {
                &[Create, ClusterAction, DescribeConfigs, AlterConfigs, IdempotentWrite, Alter, Describe]
            }
            Kind::TransactionalId => &[Describe, Write, TwoPhaseCommit],
            Kind::DelegationToken => &[Describe],
            Kind::User => &[CreateTokens, DescribeTokens],
        }
    }
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Acl {
    pub(crate) kind: Kind,
    pub(crate) pattern: Pattern,
    pub(crate) name: String,
    /// `User:NAME`, or `User:*`.
    pub(crate) principal: String,
    /// An address, or `*`.
    pub(crate) host: String,
    pub(crate) operation: Operation,
    pub(crate) permission: Permission,
}

/// Which lines are asked for; `None` is any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) kind: Option<Kind>,
    pub(crate) name: Option<String>,
    pub(crate) pattern: PatternFilter,
    pub(crate) principal: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) operation: Option<Operation>,
    pub(crate) permission: Option<Permission>,
}

/// How a filter's name is meant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum PatternFilter {
    /// The name that a line has, whatever its pattern.
    #[default]
    Any,
    /// The name of a resource: all lines that are about it.
    Match,
    /// The name that a line of this pattern has.
    Only(Pattern),
}

impl Filter {
    pub(crate) fn takes(&self, acl: &Acl) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|w| w == has);
        let named = match self.pattern {
            PatternFilter::Any => is(&self.name, &acl.name),
            PatternFilter::Match => self.name.as_deref().is_none_or(|name| acl.covers(name)),
            PatternFilter::Only(pattern) => pattern == acl.pattern && is(&self.name, &acl.name),
        };
        named
            && self.kind.is_none_or(|k| k == acl.kind)
            && self.operation.is_none_or(|o| o == acl.operation)
            && self.permission.is_none_or(|p| p == acl.permission)
            && is(&self.principal, &acl.principal)
            && is(&self.host, &acl.host)
    }
}

impl Acl {
    /// Whether it is about a resource of this name.
    fn covers(&self, name: &str) -> bool {
        match self.pattern {
            Pattern::Literal => self.name == name || self.name == ANYTHING,
            Pattern::Prefixed => name.starts_with(&self.name),
        }
    }

    /// Whether it is about whoever asks.
    fn is_for(&self, who: &Who<'_>) -> bool {
        (self.principal == who.principal || self.principal == "User:*")
            && (self.host == who.host || self.host == ANYTHING)
    }

    /// Whether what it permits, or denies, is this. Whoever may read, write, delete or alter may also look.
    fn is_about(&self, wanted: Operation) -> bool {
        use Operation::*;
        self.operation == wanted
            || self.operation == All
            || self.permission == Permission::Allow
                && match wanted {
                    Describe => matches!(self.operation, Read | Write | Delete | Alter),
                    DescribeConfigs => self.operation == AlterConfigs,
                    _ => false,
                }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    /// `User:NAME`.
    pub(crate) principal: &'a str,
    /// The address.
    pub(crate) host: &'a str,
}

/// All lines. Their order is the index: by kind, pattern and name.
type Lines = BTreeSet<Acl>;

/// The lines about one resource: those of its name and of every name, and of the prefixes, which are few, those that
/// it begins with.
fn about<'l>(lines: &'l Lines, kind: Kind, name: &'l str) -> impl Iterator<Item = &'l Acl> {
    let from = move |pattern, name: &str| {
        let (name, principal, host) = (name.to_owned(), String::new(), String::new());
        let (operation, permission) = (Operation::All, Permission::Deny);
        let first = Acl { kind, pattern, name, principal, host, operation, permission };
        lines.range(first..).take_while(move |a| (a.kind, a.pattern) == (kind, pattern))
    };
    let of_name = move |name| from(Pattern::Literal, name).take_while(move |a| a.name == name);
    let literal = [name, ANYTHING].into_iter().flat_map(of_name);
    literal.chain(from(Pattern::Prefixed, "").filter(move |a| a.covers(name)))
}

/// The lists of a broker that has an authorizer.
#[derive(Debug)]
pub(crate) struct Acls {
    super_users: Vec<String>,
    /// Whether what no line is about is everybody's.
    open: bool,
    lines: RwLock<Lines>,
}

impl Acls {
    /// Reads the file.
    pub(crate) fn open(topics: &Topics, super_users: Vec<String>, open: bool) -> io::Result<Acls> {
        Ok(Acls { super_users, open, lines: RwLock::new(topics.read_lines(FILE, parse)?) })
    }

    /// Whether somebody may do something.
    pub(crate) fn allow(&self, who: &Who<'_>, operation: Operation, kind: Kind, name: &str) -> bool {
        if self.is_super(who) {
            return true;
        }
        let (mut any, mut allowed) = (false, false);
        for acl in about(&self.lines(), kind, name) {
            any = true;
            if acl.is_for(who) && acl.is_about(operation) {
                match acl.permission {
                    Permission::Deny => return false,
                    Permission::Allow => allowed = true,
                }
            }
        }
        allowed || !any && self.open
    }

    /// Whether somebody may do something to at least one resource of a kind that there could be.
    pub(crate) fn allow_some(&self, who: &Who<'_>, operation: Operation, kind: Kind) -> bool {
        if self.is_super(who) {
            return true;
        }
        let lines = self.lines();
        let mine: Vec<&Acl> =
            lines.iter().filter(|a| a.kind == kind && a.is_for(who) && a.is_about(operation)).collect();
        let denied = |pattern: Pattern, name: &str| {
            mine.iter().filter(|a| a.permission == Permission::Deny).any(|a| match a.pattern {
                Pattern::Prefixed => name.starts_with(&a.name),
                Pattern::Literal => a.name == ANYTHING || pattern == Pattern::Literal && a.name == name,
            })
        };
        if denied(Pattern::Prefixed, "") {
            return false;
        }
        let mut allowed = mine.iter().filter(|a| a.permission == Permission::Allow);
        self.open || allowed.any(|a| !denied(a.pattern, &a.name))
    }

    /// The lines that a filter takes.
    pub(crate) fn find(&self, filter: &Filter) -> Vec<Acl> {
        self.lines().iter().filter(|acl| filter.takes(acl)).cloned().collect()
    }

    /// Changes the lists, durably. Returns what `change` does. Blocks on the disk.
    pub(crate) fn change<T>(
        &self,
        topics: &Topics,
        change: impl FnOnce(&mut BTreeSet<Acl>) -> T,
    ) -> io::Result<T> {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = lines.clone();
        let done = change(&mut next);
        if next != *lines {
            topics.put(FILE, next.iter().map(line).collect::<String>().as_bytes())?;
            *lines = next;
        }
        Ok(done)
    }

    fn is_super(&self, who: &Who<'_>) -> bool {
        self.super_users.iter().any(|user| user == who.principal)
    }

    fn lines(&self) -> RwLockReadGuard<'_, Lines> {
        self.lines.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn line(acl: &Acl) -> String {
    let [name, principal, host] = [&acl.name, &acl.principal, &acl.host].map(|t| BASE64.encode(t.as_bytes()));
    let (kind, pattern) = (acl.kind as i8, acl.pattern as i8);
    let (operation, permission) = (acl.operation as i8, acl.permission as i8);
    format!("{kind} {pattern} {operation} {permission} {name} {principal} {host}\n")
}

fn parse(line: &str) -> Option<Acl> {
    let words: Vec<&str> = line.split(' ').collect();
    let [kind, pattern, operation, permission, name, principal, host] = words[..] else { return None };
    let number = |word: &str| word.parse::<i8>().ok();
    let text = |word: &str| String::from_utf8(BASE64.decode(word.as_bytes()).ok()?).ok();
    Some(Acl {
        kind: Kind::numbered(number(kind)?)?,
        pattern: Pattern::numbered(number(pattern)?)?,
        operation: Operation::numbered(number(operation)?)?,
        permission: Permission::numbered(number(permission)?)?,
        name: text(name)?,
        principal: text(principal)?,
        host: text(host)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Kind::*, Operation::*, Pattern::*, Permission::*, *};

    fn acl(
        name: &str,
        pattern: Pattern,
        principal: &str,
        operation: Operation,
        permission: Permission,
    ) -> Acl {
        let (principal, host) = (format!("User:{principal}"), "*".to_owned());
        Acl { kind: Topic, pattern, name: name.into(), principal, host, operation, permission }
    }

    fn acls(open: bool, all: impl IntoIterator<Item = Acl>) -> Acls {
        let lines = RwLock::new(all.into_iter().collect());
        Acls { super_users: vec!["User:root".into()], open, lines }
    }

    fn may(acls: &Acls, user: &str, operation: Operation, name: &str) -> bool {
        acls.allow(&Who { principal: &format!("User:{user}"), host: "10.0.0.1" }, operation, Topic, name)
    }

    #[test]
    fn what_nobody_permits_is_denied() {
        let none = acls(false, []);
        assert!(!may(&none, "kim", Read, "t"));
        assert!(may(&none, "root", Read, "t"));
        let open = acls(true, [acl("t", Literal, "kim", Read, Allow)]);
        assert!(may(&open, "lee", Write, "other"));
        // What one line is about is nobody else's any more.
        assert!(may(&open, "kim", Read, "t") && !may(&open, "lee", Read, "t"));
    }

    #[test]
    fn a_denial_outweighs() {
        let acls = acls(
            false,
            [
                acl("*", Literal, "*", All, Allow),
                acl("pay", Prefixed, "kim", Write, Deny),
                Acl { host: "10.0.0.2".into(), ..acl("t", Literal, "lee", Read, Deny) },
            ],
        );
        assert!(may(&acls, "kim", Write, "t") && !may(&acls, "kim", Write, "payments"));
        assert!(may(&acls, "kim", Read, "payments"));
        assert!(may(&acls, "lee", Read, "t"), "the denial is for another host");
    }

    #[test]
    fn whoever_may_read_may_look() {
        let acls = acls(false, [acl("t", Literal, "kim", Read, Allow), acl("t", Literal, "lee", Read, Deny)]);
        assert!(may(&acls, "kim", Describe, "t") && !may(&acls, "kim", Write, "t"));
        assert!(!may(&acls, "lee", Describe, "t"));
    }

    #[test]
    fn something_may_be_written_if_not_all_is_denied() {
        let kim = Who { principal: "User:kim", host: "10.0.0.1" };
        let some = |all: Vec<Acl>| acls(false, all).allow_some(&kim, Write, Topic);
        let allowed = acl("orders", Literal, "kim", Write, Allow);
        assert!(!some(vec![]) && some(vec![allowed.clone()]));
        assert!(!some(vec![allowed.clone(), acl("ord", Prefixed, "kim", Write, Deny)]));
        assert!(!some(vec![allowed.clone(), acl("*", Literal, "kim", Write, Deny)]));
        assert!(some(vec![allowed, acl("other", Literal, "kim", Write, Deny)]));
        // One name of many is denied.
        let prefix = acl("a", Prefixed, "kim", Write, Allow);
        assert!(some(vec![prefix, acl("a", Literal, "kim", Write, Deny)]));
    }

    #[test]
    fn filters_match_as_they_say() {
        let (all, t) = (acl("*", Literal, "kim", Read, Allow), acl("t", Prefixed, "kim", Read, Allow));
        let takes = |name: &str, pattern| {
            let filter = Filter { name: Some(name.into()), pattern, ..Filter::default() };
            (filter.takes(&all), filter.takes(&t))
        };
        assert_eq!(takes("topic", PatternFilter::Match), (true, true));
        assert_eq!(takes("topic", PatternFilter::Any), (false, false));
        assert_eq!(takes("t", PatternFilter::Any), (false, true));
        assert_eq!(takes("t", PatternFilter::Only(Literal)), (false, false));
        assert_eq!(takes("*", PatternFilter::Only(Literal)), (true, false));
    }

    #[test]
    fn a_list_is_lines() {
        let one = Acl { kind: Group, host: "::1".into(), ..acl("김 a", Prefixed, "kim lee", Alter, Deny) };
        assert_eq!(parse(line(&one).trim_end()), Some(one));
        assert_eq!(parse("2 3 4"), None);
        assert_eq!(parse("9 3 3 3 Kg== Kg== Kg=="), None);
    }
}
