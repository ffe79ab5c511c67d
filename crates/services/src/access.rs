//! The one evaluator: may this caller, from this address, do this here?
//!
//! It knows accounts, sub-accounts, admins, token scope and address rules; services do not decide
//! access themselves. The caller has been proven already ([`crate::principal`]).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use kv4::{Bucket, Head};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::Path;
use wire::token::{Claims, Grants};

use crate::principal::Role;
use crate::{Call, Method, Service, Services, accounts, store_fault};

/// The flag by which a whole series goes.
pub(crate) const ERASE: &str = "erase";

/// Decides a call of the HTTP API with an account's credentials.
///
/// # Errors
/// `unauthorized` where an address rule denies, `not_allowed` where the credentials do not permit.
pub async fn decide(services: &Services, service: Service, call: &Call<'_>) -> Result<(), Fault> {
    let Call { caller, method, ref path, address, .. } = *call;
    let is_read = method == Method::Get;
    // `_auth` is never denied by its own rule, so nobody locks himself out.
    if service != Service::Authorization {
        permit(services, &caller.bucket, path, address).await?;
    }
    let refusal = match service {
        Service::Statistics if !is_read => Some("statistics are written by services only"),
        Service::Accounts
            if !is_read && caller.sub.is_some() && path.as_str() == accounts::ACCOUNTS_PATH =>
        {
            Some("a sub-account cannot have sub-accounts")
        }
        _ if call.params.flag(ERASE) && caller.role != Role::Owner => {
            Some("only the account's owner may erase a series")
        }
        _ => None,
    };
    match refusal {
        Some(why) => Err(Fault::with(Code::NotAllowed, why)),
        None => Ok(()),
    }
}

/// Decides whether the holder of a token may be on a path. The token's signature, time and
/// revocation have been seen to.
///
/// # Errors
/// `channel_override_not_allowed` outside the token's path, `not_allowed` without the grant,
/// `unauthorized` where an address rule denies.
pub async fn decide_join(
    services: &Services,
    claims: &Claims,
    bucket: &Bucket,
    path: &Path,
    address: IpAddr,
) -> Result<(), Fault> {
    if claims.path.as_ref().is_some_and(|scope| scope != path) {
        return Err(Fault::new(Code::ChannelOverrideNotAllowed));
    }
    if !claims.grants.contains(Grants::SUBSCRIBE) {
        return Err(Fault::with(Code::NotAllowed, "the token does not grant `subscribe`"));
    }
    permit(services, bucket, path, address).await
}

/// Permits what no address rule of the bucket denies.
///
/// # Errors
/// `unauthorized` where one does; the store's, when the rules have to be read.
pub(crate) async fn permit(
    services: &Services,
    bucket: &Bucket,
    path: &Path,
    address: IpAddr,
) -> Result<(), Fault> {
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    if rules.denied(path, address) {
        let why = format!("a rule in /_auth denies {address} here");
        return Err(Fault::with(Code::Unauthorized, why));
    }
    Ok(())
}

/// The address rules of one bucket.
#[derive(Clone, Debug, Default)]
pub struct Rules(HashMap<Path, Vec<Network>>);

impl Rules {
    pub(crate) fn compile(rows: &[(Path, Arc<Head>)]) -> Rules {
        let mut rules: HashMap<Path, Vec<Network>> = HashMap::new();
        for (path, head) in rows {
            if let Some(network) = Network::parse(head.key.as_str()) {
                rules.entry(path.clone()).or_default().push(network);
            }
        }
        Rules(rules)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether a rule at the path or above it denies the address.
    pub fn denied(&self, path: &Path, address: IpAddr) -> bool {
        !self.0.is_empty()
            && path.ancestors().any(|path| {
                self.0
                    .get(&path)
                    .is_some_and(|networks| networks.iter().any(|net| net.contains(address)))
            })
    }
}

/// A range of addresses: one address, or a prefix in CIDR form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// IPv4 as its IPv4-mapped IPv6 address, so that both spellings of one address are one.
    base: u128,
    mask: u128,
}

impl Network {
    /// Reads `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return None;
        }
        let ones = prefix + (128 - bits);
        let mask = if ones == 0 { 0 } else { u128::MAX << (128 - ones) };
        Some(Network { base: widen(address) & mask, mask })
    }

    /// The one spelling of it, as the key of a rule: all others are the same rule.
    pub fn to_key(self) -> String {
        let base = Ipv6Addr::from(self.base);
        let ones = self.mask.count_ones();
        let (address, ones, bits) = match base.to_ipv4_mapped() {
            Some(base) if ones >= 96 => (IpAddr::V4(base), ones - 96, 32),
            _ => (IpAddr::V6(base), ones, 128),
        };
        if ones == bits { address.to_string() } else { format!("{address}/{ones}") }
    }

    pub fn contains(self, address: IpAddr) -> bool {
        widen(address) & self.mask == self.base
    }
}

fn widen(address: IpAddr) -> u128 {
    let address: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    u128::from(address)
}
