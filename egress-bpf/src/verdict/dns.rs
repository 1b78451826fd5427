//! Lookups on their way to the node's proxy, and answers on their way back.
//!
//! A lookup of a governed endpoint towards a known resolver is rewritten to the proxy's address and
//! a port that names the resolver's slot; the answer's source port names it again. No state is kept.

use super::{Maps, Scene, Verdict, is_incomplete};
use crate::abi::{Address, Config, Direction, DropReason, RESOLVERS_MAX};
use crate::packet::{Headers, Kind, Piece};

/// The port that lookups go to.
pub(super) const PORT: u16 = 53;

/// The verdict on a lookup or an answer; `None` for every other packet.
#[inline(always)]
pub(super) fn intercept<M: Maps>(
    maps: &M,
    headers: &Headers,
    scene: &Scene,
    is_governed: bool,
) -> Result<Option<Verdict>, DropReason> {
    let config = maps.config();
    match scene.direction {
        Direction::Egress => lookup(maps, config, headers, is_governed),
        Direction::Ingress => answer(maps, config, headers, scene.is_from_node),
    }
}

#[inline(always)]
fn lookup<M: Maps>(
    maps: &M,
    config: Option<&Config>,
    headers: &Headers,
    is_governed: bool,
) -> Result<Option<Verdict>, DropReason> {
    if config.is_some_and(|config| is_proxy(config, &headers.destination)) {
        return Err(DropReason::ProxyAddress);
    }
    if !is_governed || !matches!(headers.kind, Kind::Tcp | Kind::Udp) {
        return Ok(None);
    }
    if let Piece::Later = headers.piece {
        return Ok(None);
    }
    if headers.destination_port != PORT {
        return Ok(None);
    }
    let Some(slot) = maps.resolver_slot(&headers.destination) else {
        // It may be a resolver that is not written.
        return if is_incomplete(config) { Err(DropReason::Incomplete) } else { Ok(None) };
    };
    if let Piece::First = headers.piece {
        return Err(DropReason::DnsFragment);
    }
    if config.is_none_or(|config| config.proxy_ifindex == 0) || slot >= RESOLVERS_MAX as u32 {
        return Err(DropReason::NoProxy);
    }
    Ok(Some(Verdict::ToProxy { slot: slot as u16 }))
}

#[inline(always)]
fn answer<M: Maps>(
    maps: &M,
    config: Option<&Config>,
    headers: &Headers,
    is_from_node: bool,
) -> Result<Option<Verdict>, DropReason> {
    let Some(config) = config else {
        return Ok(None);
    };
    if !is_proxy(config, &headers.source) {
        return Ok(None);
    }
    // The proxy is a program of the node: what came in from elsewhere carries its address falsely.
    if !is_from_node {
        return Err(DropReason::ProxyAddress);
    }
    if !matches!(headers.piece, Piece::Whole) {
        return Err(DropReason::DnsFragment);
    }
    if !matches!(headers.kind, Kind::Tcp | Kind::Udp) {
        return Err(DropReason::ProxyAddress);
    }
    let slot = headers.source_port.wrapping_sub(config.proxy_port);
    if slot >= RESOLVERS_MAX as u16 || !maps.has_resolver(slot as u32, headers.source.is_v4()) {
        return Err(DropReason::ProxyAddress);
    }
    Ok(Some(Verdict::FromProxy { slot }))
}

#[inline(always)]
pub(super) fn is_proxy(config: &Config, address: &Address) -> bool {
    config.proxy_ifindex != 0 && (config.proxy_v4.is(address) || config.proxy_v6.is(address))
}
