//! How many connections there are, from whom, and how fast they come (KIP-402, KIP-612).

use std::{collections::HashMap, net::IpAddr};

use crate::config::BrokerConfig;

/// The connections that there are.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    all: usize,
    /// Those from each address; never 0.
    of: HashMap<IpAddr, usize>,
    /// When the next one may come if they are to come no faster than they may, in µs of the clock.
    next_us: u64,
}

impl Connections {
    /// Lets one in, and says how many milliseconds no other is to be accepted; or names the setting that keeps it out.
    pub(crate) fn admit(
        &mut self,
        address: IpAddr,
        config: &BrokerConfig,
        now_ms: u64,
    ) -> Result<u64, &'static str> {
        if self.all >= config.max_connections {
            return Err("max.connections");
        }
        let of = self.of.get(&address).copied().unwrap_or(0);
        let most = config.max_connections_of.get(&address).copied();
        if of >= most.unwrap_or(config.max_connections_of_address) {
            return Err("max.connections.per.ip");
        }
        self.all += 1;
        self.of.insert(address, of + 1);
        let now_us = now_ms * 1_000;
        // A second's worth may come at once.
        self.next_us = self.next_us.max(now_us.saturating_sub(1_000_000));
        self.next_us += 1_000_000 / u64::from(config.max_new_connections.max(1));
        Ok(self.next_us.saturating_sub(now_us).div_ceil(1_000))
    }

    /// One has ended.
    pub(crate) fn leave(&mut self, address: IpAddr) {
        self.all -= 1;
        if let Some(of) = self.of.get_mut(&address) {
            *of -= 1;
            if *of == 0 {
                self.of.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_there_may_be() {
        let settings = [
            ("max.connections", "4"),
            ("max.connections.per.ip", "2"),
            ("max.connections.per.ip.overrides", "127.0.0.3:1,127.0.0.4:0"),
        ];
        let config = BrokerConfig::new(settings).unwrap();
        let mut connections = Connections::default();
        let mut admit = |last: u8| connections.admit([127, 0, 0, last].into(), &config, 5_000);
        assert!(admit(1).is_ok() && admit(1).is_ok());
        assert_eq!(admit(1), Err("max.connections.per.ip"));
        assert!(admit(3).is_ok());
        assert_eq!(admit(3), Err("max.connections.per.ip"));
        assert_eq!(admit(4), Err("max.connections.per.ip"));
        assert!(admit(2).is_ok());
        assert_eq!(admit(2), Err("max.connections"));
        connections.leave([127, 0, 0, 1].into());
        assert!(connections.admit([127, 0, 0, 1].into(), &config, 5_000).is_ok());
    }

    #[test]
    fn who_comes_too_fast_waits() {
        let config = BrokerConfig::new([("max.connection.creation.rate", "10")]).unwrap();
        let mut connections = Connections::default();
        let mut at = |ms| connections.admit([127, 0, 0, 1].into(), &config, ms).unwrap();
        // Ten at once, and then one each 100 ms.
        assert!((0..10).all(|_| at(60_000) == 0));
        assert_eq!((at(60_000), at(60_100)), (100, 100));
        assert_eq!(at(60_300), 0);
    }
}
