//! Whether whoever asks may: what the handlers ask the access control lists. Without an authorizer everybody may
//! do everything. Which operation each API needs is Kafka's table of them ("Operations and Resources on Protocols").

use kafka_protocol::ResponseError;
use uuid::Uuid;

use super::Context;
use crate::{
    security::acl::{CLUSTER, Kind, Operation, Who},
    topics::Topic,
};

impl Context {
    /// Whether something may be done to a resource.
    pub(super) fn may(&self, operation: Operation, kind: Kind, name: &str) -> bool {
        let Some(acls) = &self.shared.acls else { return true };
        self.with_who(|who| acls.allow(who, operation, kind, name))
    }

    /// Whether something may be done to some resource of a kind.
    pub(super) fn may_some(&self, operation: Operation, kind: Kind) -> bool {
        let Some(acls) = &self.shared.acls else { return true };
        self.with_who(|who| acls.allow_some(who, operation, kind))
    }

    pub(super) fn topic(&self, operation: Operation, name: &str) -> Result<(), ResponseError> {
        let may = self.may(operation, Kind::Topic, name);
        may.then_some(()).ok_or(ResponseError::TopicAuthorizationFailed)
    }

    pub(super) fn group(&self, operation: Operation, name: &str) -> Result<(), ResponseError> {
        let may = self.may(operation, Kind::Group, name);
        may.then_some(()).ok_or(ResponseError::GroupAuthorizationFailed)
    }

    pub(super) fn cluster(&self, operation: Operation) -> Result<(), ResponseError> {
        let may = self.may(operation, Kind::Cluster, CLUSTER);
        may.then_some(()).ok_or(ResponseError::ClusterAuthorizationFailed)
    }

    pub(super) fn transaction(&self, operation: Operation, id: &str) -> Result<(), ResponseError> {
        let may = self.may(operation, Kind::TransactionalId, id);
        may.then_some(()).ok_or(ResponseError::TransactionalIdAuthorizationFailed)
    }

    /// The topic that a request names or, if `id` is given, has the id of, if this may be done to it. Ids tell nothing:
    /// whether there is such a one may be known to all.
    pub(super) fn find_topic(
        &self,
        operation: Operation,
        name: &str,
        id: Option<Uuid>,
    ) -> Result<Topic, ResponseError> {
        let topics = &self.shared.topics;
        let Some(id) = id else {
            self.topic(operation, name)?;
            return topics.get(name).ok_or(ResponseError::UnknownTopicOrPartition);
        };
        let topic = topics.by_id(id).ok_or(ResponseError::UnknownTopicId)?;
        self.topic(operation, topic.name())?;
        Ok(topic)
    }

    /// What may be done to a resource, a bit for each operation's number (KIP-430), if it is asked for.
    pub(super) fn operations(&self, asked: bool, kind: Kind, name: &str) -> i32 {
        if !asked {
            return i32::MIN;
        }
        let may = kind.operations().iter().filter(|o| self.may(**o, kind, name));
        may.fold(0, |bits, operation| bits | 1 << *operation as i32)
    }

    fn with_who<T>(&self, ask: impl FnOnce(&Who<'_>) -> T) -> T {
        let auth = self.client.auth();
        ask(&Who { principal: auth.principal(), host: self.client.host.trim_start_matches('/') })
    }
}
