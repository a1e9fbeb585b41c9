//! Sets of addresses.

use std::net::IpAddr;

use ipnet::IpNet;

#[derive(Clone, Debug)]
pub(crate) struct Networks(Vec<IpNet>);

impl Networks {
    /// From texts like `10.0.0.0/8`, or a single address. An error is the text that is neither.
    pub(crate) fn parse(texts: Vec<String>) -> Result<Networks, String> {
        let parse = |text: String| text.parse().or_else(|_| text.parse().map(IpAddr::into)).map_err(|_| text);
        texts.into_iter().map(parse).collect::<Result<_, _>>().map(Networks)
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_in_it_and_no_others() {
        let texts = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"].map(String::from);
        let networks = Networks::parse(texts.into()).unwrap();
        for (ip, inside) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(networks.contains(ip.parse().unwrap()), inside, "{ip}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        assert_eq!(Networks::parse(vec!["10.0.0.0/33".into()]).unwrap_err(), "10.0.0.0/33");
    }
}
