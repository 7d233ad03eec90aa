//! The VIPs, and the device they are bound to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use model::{DEVICE, Family, Via, Vip};
use neli::consts::socket::NlFamily;
use plan::Step;
use wire::rtnl::{self, Address, Link, LocalRoute, Route, RouteFilter};
use wire::{Batch, Malformed};

use crate::apply::step_at;
use crate::pipeline::{Outcome, Pipeline};
use crate::socket::{Refusal, Socket};
use crate::{Error, Report};

/// The VIPs of this network namespace. A [`Kernel`](crate::Kernel) has one; by itself it does without IPVS.
pub struct Vips {
    socket: Socket,
    /// Stand-ins (see [`Vips::routes_at_stake`]) that a process left when it was killed; they go with the next change.
    strays: Vec<LocalRoute>,
}

/// What is bound to our device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// See [`State::vips`](model::State::vips).
    pub vips: BTreeMap<Vip, Option<IpAddr>>,
    /// See [`State::unreached`](model::State::unreached).
    pub unreached: BTreeSet<Vip>,
}

/// `LOOPBACK_IFINDEX` (include/net/flow.h): the loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;
const EOPNOTSUPP: i32 = 95;

impl Vips {
    /// How long changes have been with the kernel since this was last asked.
    pub(crate) fn take_time_in_kernel(&mut self) -> Duration {
        self.socket.take_time_in_kernel()
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// When that fails.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::for_filtered_dumps(NlFamily::Route, "route")?, strays: Vec::new() })
    }

    pub(crate) const fn sockets(&mut self) -> [&mut Socket; 1] {
        [&mut self.socket]
    }

    /// The number by which the kernel calls the socket that changes VIPs.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    /// The VIPs of these families that are bound to our device, by which means, and which of them nothing reaches; none without the device.
    ///
    /// # Errors
    /// When they cannot be read in full, or what has the device's name is no dummy device.
    pub fn observe(&mut self, families: &BTreeSet<Family>) -> Result<Bound, Error> {
        let (mut vips, mut unreached) = (BTreeMap::new(), BTreeSet::new());
        let Some(device) = self.device()? else { return Ok(Bound { vips, unreached }) };
        self.strays.clear();
        for family in families {
            for route in self.routes(*family)? {
                if route.link == device.index {
                    vips.insert(Vip::new(route.address, Via::Route), route.source);
                } else if route.link == LOOPBACK {
                    self.strays.push(route);
                }
            }
        }
        let of_ours =
            |address: &Address| address.link == device.index && is_vip(address) && families.contains(&Family::of(address.address));
        let addresses: Vec<_> = self.addresses(Some(device.index))?.into_iter().filter(of_ours).collect();
        for family in addresses.iter().map(|address| Family::of(address.address)).collect::<BTreeSet<_>>() {
            let local = self.local_addresses(family)?;
            for address in addresses.iter().map(|address| address.address).filter(|address| Family::of(*address) == family) {
                let vip = Vip::new(address, Via::Address);
                vips.insert(vip, None);
                unreached.extend((!local.contains(&address)).then_some(vip));
            }
        }
        Ok(Bound { vips, unreached })
    }

    /// The addresses that packets reach this node by, for which the kernel has made routes when they were bound. Others can take these away, and leave the
    /// address where nothing comes to it.
    fn local_addresses(&mut self, family: Family) -> Result<BTreeSet<IpAddr>, Error> {
        let filter = RouteFilter { family, protocol: Some(rtnl::BY_KERNEL), link: None };
        let addresses = self.socket.dump(
            "listing the routes of addresses",
            |batch, seq| rtnl::get_routes(batch, seq, filter),
            |addresses: &mut Vec<IpAddr>, _, payload| {
                addresses.extend(rtnl::parse_route(payload)?.known().as_ref().and_then(Route::of_own_address));
                Ok(())
            },
        )?;
        Ok(addresses.into_iter().collect())
    }

    /// The addresses of all interfaces, each with its interface's name. IPv6 addresses that the node cannot speak from yet are left out.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn interfaces(&mut self) -> Result<Vec<(String, IpAddr)>, Error> {
        let names: BTreeMap<u32, String> = self.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let addresses = self.addresses(None)?;
        // An address whose link went in between has gone with it.
        let named = |address: &Address| Some((names.get(&address.link)?.clone(), address.address));
        Ok(addresses.iter().filter(|address| address.is_usable()).filter_map(named).collect())
    }

    /// All interfaces.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        self.socket.dump("listing links", rtnl::get_links, |links: &mut Vec<Link>, _, payload| {
            links.push(rtnl::parse_link(payload)?);
            Ok(())
        })
    }

    /// The gateways of default routes, of both families. Routes that a rule leads to in other tables are not looked at.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn gateways(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let mut gateways = BTreeSet::new();
        for family in Family::ALL {
            gateways.extend(self.socket.dump(
                "listing routes",
                |batch, seq| rtnl::get_main_routes(batch, seq, family),
                |gateways: &mut Vec<IpAddr>, _, payload| {
                    gateways.extend(rtnl::parse_default_gateways(payload)?.known().unwrap_or_default());
                    Ok(())
                },
            )?);
        }
        Ok(gateways)
    }

    /// The number of our device, if it is there.
    pub(crate) fn device_index(&mut self) -> Result<Option<u32>, Error> {
        Ok(self.link(DEVICE)?.filter(is_of_our_kind).map(|device| device.index))
    }

    /// Whether our device, which has this number, has no IPv4 address.
    pub(crate) fn is_bare(&mut self, device: u32) -> Result<bool, Error> {
        let addresses = self.addresses(Some(device))?;
        Ok(!addresses.iter().any(|address| address.link == device && address.address.is_ipv4()))
    }

    /// The local routes of a family with our protocol number, whichever device they are on.
    fn routes(&mut self, family: Family) -> Result<Vec<LocalRoute>, Error> {
        let filter = RouteFilter { family, protocol: Some(rtnl::PROTOCOL), link: None };
        self.socket.dump(
            "listing VIP routes",
            |batch, seq| rtnl::get_routes(batch, seq, filter),
            |routes: &mut Vec<LocalRoute>, _, payload| {
                // Kernels before 4.20 do not filter.
                routes.extend(rtnl::parse_route(payload)?.known().as_ref().and_then(Route::ours));
                Ok(())
            },
        )
    }

    fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>, Error> {
        self.socket.dump(
            "listing addresses",
            |batch, seq| rtnl::get_addresses(batch, seq, link),
            |addresses: &mut Vec<Address>, _, payload| {
                addresses.extend(rtnl::parse_address(payload)?.known());
                Ok(())
            },
        )
    }

    /// Carries out those of `steps` that are about VIPs; each comes with its place in the plan.
    pub fn apply(&mut self, steps: &[(usize, &Step)], report: &mut Report) {
        let binds = steps.iter().any(|(_, step)| matches!(step, Step::BindVip { .. } | Step::RebindVip { .. }));
        let device = match if binds { self.ensure_device().map(Some) } else { self.device() } {
            Ok(Some(device)) => device,
            // Without the device there is nothing to unbind.
            Ok(None) => return,
            Err(error) => return fail_all(steps, error, report),
        };
        let unbound =
            steps.iter().filter_map(|(_, step)| if let Step::UnbindVip(vip) = step { Some(*vip) } else { None }).collect();
        let mut unreached = Vec::new();
        let outcome = self.carry_out(device.index, &unbound, |pipeline| {
            for (index, step) in steps {
                match step {
                    Step::RebindVip { vip, .. } if vip.via == Via::Address => unreached.push((*index, *vip)),
                    Step::BindVip { vip, source } => {
                        pipeline.push(Some(*index), |batch, seq| bind(batch, seq, device.index, *vip, *source));
                    }
                    Step::RebindVip { vip, source } => {
                        let route = LocalRoute { address: vip.address, link: device.index, source: *source };
                        pipeline.push(Some(*index), |batch, seq| rtnl::replace_local_route(batch, seq, &route));
                    }
                    Step::UnbindVip(vip) => pipeline.push(Some(*index), |batch, seq| unbind(batch, seq, device.index, *vip)),
                    _ => {}
                }
            }
        });
        let Outcome { failures, broken } = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return fail_all(steps, error, report),
        };
        let mut taken = Vec::new();
        for (index, error) in failures {
            // A route that was at stake is still there, or an audit will find it missing.
            let Some(index) = index else { continue };
            match step_at(steps, index) {
                // What was to be unbound is not bound: that is what was wanted.
                Some(Step::UnbindVip(_)) if error.is_gone() => {}
                Some(Step::BindVip { vip: Vip { via: Via::Route, .. }, .. }) if error.already_exists() => {
                    taken.push((index, error));
                }
                Some(Step::BindVip { vip, .. }) if error.already_exists() => unreached.push((index, *vip)),
                Some(step) => report.fail(index, step.clone(), error),
                None => {}
            }
        }
        let broken = broken.or(if taken.is_empty() { None } else { self.bind_beside(device.index, taken, steps, report) });
        let broken = broken.or(if unreached.is_empty() { None } else { self.bind_again(device.index, &unreached, steps, report) });
        if let (Some(error), Some((index, step))) = (broken, steps.first()) {
            report.fail(*index, (*step).clone(), error);
        }
    }

    /// Has the kernel do what `write` says, which includes that `unbound` are unbound, and keeps meanwhile what goes with that and is to stay.
    fn carry_out(
        &mut self,
        device: u32,
        unbound: &BTreeSet<Vip>,
        write: impl FnOnce(&mut Pipeline<'_, Option<usize>>),
    ) -> Result<Outcome<Option<usize>>, Error> {
        let (at_stake, stand_ins) = self.routes_at_stake(device, unbound)?;
        let strays = std::mem::take(&mut self.strays);
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        for route in &stand_ins {
            pipeline.push(None, |batch, seq| rtnl::prepend_local_route(batch, seq, route));
        }
        write(&mut pipeline);
        for route in &at_stake {
            pipeline.push(None, |batch, seq| rtnl::prepend_local_route(batch, seq, route));
        }
        for route in stand_ins.iter().chain(&strays) {
            pipeline.push(None, |batch, seq| rtnl::del_local_route(batch, seq, route));
        }
        Ok(pipeline.finish())
    }

    /// The routes to make again when `unbound` are unbound, and those that stand in for them until then: with the last IPv4 address of a device
    /// Linux takes all IPv4 routes of the device along (`fib_disable_ip`). A packet that came before they are back would be forwarded, as to a
    /// stranger.
    fn routes_at_stake(&mut self, device: u32, unbound: &BTreeSet<Vip>) -> Result<(Vec<LocalRoute>, Vec<LocalRoute>), Error> {
        if !unbound.iter().any(|vip| vip.via == Via::Address && vip.family() == Family::V4) {
            return Ok(Default::default());
        }
        let mut routes = self.routes(Family::V4)?;
        routes.retain(|route| route.link == device && !unbound.contains(&Vip::new(route.address, Via::Route)));
        // Any device will do: a local route is good for packets from everywhere.
        let stand_ins = routes.iter().map(|route| LocalRoute { link: LOOPBACK, ..*route }).collect();
        Ok((routes, stand_ins))
    }

    /// Binds as a route what is still bound as an address: in IPv4 the kernel's own route to that address is in the way of another. A
    /// route that belongs to another device's address stays alone. Returns what made the socket fail.
    fn bind_beside(
        &mut self,
        device: u32,
        taken: Vec<(usize, Error)>,
        steps: &[(usize, &Step)],
        report: &mut Report,
    ) -> Option<Error> {
        let bound: BTreeSet<IpAddr> = match self.addresses(Some(device)) {
            Ok(addresses) => addresses.iter().filter(|address| address.link == device).map(|address| address.address).collect(),
            Err(error) => return Some(error),
        };
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        for (index, error) in taken {
            let Some(step) = step_at(steps, index) else { continue };
            match step {
                Step::BindVip { vip, source } if bound.contains(&vip.address) => {
                    let route = LocalRoute { address: vip.address, link: device, source: *source };
                    pipeline.push(index, |batch, seq| rtnl::prepend_local_route(batch, seq, &route));
                }
                _ => report.fail(index, step.clone(), error),
            }
        }
        let Outcome { failures, broken } = pipeline.finish();
        for (index, error) in failures {
            if let Some(step) = step_at(steps, index) {
                report.fail(index, step.clone(), error);
            }
        }
        broken
    }

    /// Binds addresses that are bound once more: others have taken the routes to them, which the kernel makes for a new address only. Returns what made
    /// the socket fail.
    fn bind_again(
        &mut self,
        device: u32,
        unreached: &[(usize, Vip)],
        steps: &[(usize, &Step)],
        report: &mut Report,
    ) -> Option<Error> {
        let unbound = unreached.iter().map(|(_, vip)| *vip).collect();
        let outcome = self.carry_out(device, &unbound, |pipeline| {
            for (index, vip) in unreached {
                pipeline.push(None, |batch, seq| rtnl::del_address(batch, seq, device, vip.address));
                pipeline.push(Some(*index), |batch, seq| rtnl::new_address(batch, seq, device, vip.address));
            }
        });
        let Outcome { failures, broken } = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return Some(error),
        };
        for (index, error) in failures.into_iter().filter_map(|(index, error)| Some((index?, error))) {
            if let Some(step) = step_at(steps, index) {
                report.fail(index, step.clone(), error);
            }
        }
        broken
    }

    /// Removes our device, unless something is on it that is not ours: addresses or routes. Returns whether it was there and is gone.
    ///
    /// # Errors
    /// When what is on it cannot be read in full, or the kernel refuses.
    pub fn remove_device(&mut self) -> Result<bool, Error> {
        for route in std::mem::take(&mut self.strays) {
            self.execute(|batch, seq| rtnl::del_local_route(batch, seq, &route))
                .or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) })?;
        }
        let Some(device) = self.device()? else { return Ok(false) };
        let is_used = |address: &Address| address.link == device.index && !is_kernels(address.address);
        if self.addresses(Some(device.index))?.iter().any(is_used) {
            return Ok(false);
        }
        for family in Family::ALL {
            let routes = self.socket.dump(
                "listing the routes of a link",
                |batch, seq| rtnl::get_routes_of_link(batch, seq, family, device.index),
                |routes: &mut Vec<Route>, _, payload| {
                    routes.extend(rtnl::parse_route(payload)?.known());
                    Ok(())
                },
            )?;
            if routes.iter().any(|route| route.link == Some(device.index) && !route.is_kernels()) {
                return Ok(false);
            }
        }
        self.execute(|batch, seq| rtnl::del_link(batch, seq, device.index))?;
        Ok(true)
    }

    /// Our device, made if it is not there and set up if it is down: IPv6 routes need that.
    fn ensure_device(&mut self) -> Result<Link, Error> {
        let device = match self.device()? {
            Some(device) => device,
            None => self.make_device()?,
        };
        if !device.is_up() {
            self.execute(|batch, seq| rtnl::set_up(batch, seq, device.index))?;
        }
        Ok(device)
    }

    fn make_device(&mut self) -> Result<Link, Error> {
        self.execute(|batch, seq| rtnl::new_dummy(batch, seq, DEVICE)).map_err(|error| match error.errno() {
            Some(EOPNOTSUPP) => Error::missing_feature(
                format!("the device {DEVICE}"),
                "this kernel has no dummy devices: load the module with `modprobe dummy`, or install a kernel built with CONFIG_DUMMY",
            ),
            _ => error,
        })?;
        self.device()?.ok_or_else(|| Error::interrupted(format!("the device {DEVICE}")))
    }

    fn device(&mut self) -> Result<Option<Link>, Error> {
        match self.link(DEVICE)? {
            Some(link) if !is_of_our_kind(&link) => Err(Error::missing_feature(
                format!("the device {DEVICE}"),
                "there is a device of that name that is no dummy device; rename or remove it",
            )),
            link => Ok(link),
        }
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        self.socket.ask("looking for a link", |batch, seq| rtnl::get_link(batch, seq, name), |_, payload| rtnl::parse_link(payload))
    }

    fn execute(&mut self, write: impl FnOnce(&mut Batch, u32) -> Result<(), Malformed>) -> Result<(), Error> {
        let mut batch = Batch::default();
        let seq = self.socket.next_seq();
        write(&mut batch, seq).map_err(|error| Error::malformed(DEVICE, error))?;
        self.socket.execute(&mut batch, seq..=seq)?.first().map_or(Ok(()), |refusal| Err(refused(refusal)))
    }
}

/// A device of our name that is no dummy device is somebody else's, and has none of our VIPs.
fn is_of_our_kind(link: &Link) -> bool {
    link.kind.as_deref() == Some("dummy")
}

/// One cause, so one report; the other steps are as undone.
fn fail_all(steps: &[(usize, &Step)], error: Error, report: &mut Report) {
    let mut error = Some(error);
    for (index, step) in steps {
        match error.take() {
            Some(error) => report.fail(*index, (*step).clone(), error),
            None => report.leave(*index),
        }
    }
}

fn bind(batch: &mut Batch, seq: u32, device: u32, vip: Vip, source: Option<IpAddr>) -> Result<(), Malformed> {
    match vip.via {
        Via::Route => rtnl::add_local_route(batch, seq, &LocalRoute { address: vip.address, link: device, source }),
        Via::Address => rtnl::new_address(batch, seq, device, vip.address),
    }
}

fn unbind(batch: &mut Batch, seq: u32, device: u32, vip: Vip) -> Result<(), Malformed> {
    match vip.via {
        // Whatever its source is.
        Via::Route => rtnl::del_local_route(batch, seq, &LocalRoute { address: vip.address, link: device, source: None }),
        Via::Address => rtnl::del_address(batch, seq, device, vip.address),
    }
}

/// The kernel gives a device that is up an IPv6 link-local address of its own.
const fn is_kernels(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn is_vip(address: &Address) -> bool {
    !is_kernels(address.address) && address.prefix == Family::of(address.address).bits()
}

fn refused(refusal: &Refusal) -> Error {
    Error::refused("the kernel's routes", refusal.errno, refusal.text.as_deref())
}
