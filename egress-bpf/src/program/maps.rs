//! The maps, and access to them.
//!
//! What grows with the cluster's policies and with what pods look up is allocated as it is written;
//! what packets write is allocated beforehand, so that an insert is cheap and fails only when full.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::programs::TcContext;
use namegate_egress_bpf::abi::{
    Address, BLOCKS, Backend, BackendKey, COUNTER_SLOTS, CidrKey, Config, Direction, DropReason,
    Endpoint, Event, EventVerdict, FRAGMENTS_EACH, Flow, FlowKey, Fragment, FragmentKey, HitKey,
    NameEntry, NameKey, PASSAGES as PLACES, Pass, Passage, PeerKey, PortKey, QuotaKey,
    RESOLVERS_MAX, RuleSet, Service, ServiceKey, TOTAL_OPENED, TOTAL_RELEASED,
    TOTALS as TOTAL_PLACES, Table, TableKey,
};
use namegate_egress_bpf::verdict::{Case, Full, Gate, Maps, Question, Scene, admit, answer, track};

use crate::skb::Skb;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);
/// Written by user space as memory, a word at a time.
#[map]
static PASSAGES: Array<Passage> = Array::with_max_entries(PLACES, BPF_F_MMAPABLE);
/// A bit for each block of addresses, set where neither `IPCACHE` nor `SERVICES` has one of it. Written by
/// user space as memory.
#[map]
static VACANT: Array<u64> = Array::with_max_entries(BLOCKS / u64::BITS, BPF_F_MMAPABLE);
#[map]
static IPCACHE: HashMap<Address, u32> = HashMap::with_max_entries(524_288, BPF_F_NO_PREALLOC);
#[map]
static RANGES: LpmTrie<Address, u32> = LpmTrie::with_max_entries(4_096, BPF_F_NO_PREALLOC);
#[map]
static TABLES: HashMap<TableKey, Table> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
static PEERS: HashMap<PeerKey, RuleSet> = HashMap::with_max_entries(1_048_576, BPF_F_NO_PREALLOC);
#[map]
static CIDRS: LpmTrie<CidrKey, RuleSet> = LpmTrie::with_max_entries(524_288, BPF_F_NO_PREALLOC);
#[map]
static PORTS: HashMap<PortKey, RuleSet> = HashMap::with_max_entries(524_288, BPF_F_NO_PREALLOC);
#[map]
static NAMES: HashMap<NameKey, NameEntry> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
#[map]
static SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: HashMap<BackendKey, Backend> =
    HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(131_072, 0);
/// Entries that were ever made in `FLOWS`: counted here.
#[map]
static OPENED: HashMap<QuotaKey, u64> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
/// Of these, how many are gone: counted by user space, which alone removes any.
#[map]
static RELEASED: HashMap<QuotaKey, u64> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
/// The same of all endpoints, shared with user space as memory.
#[map]
static TOTALS: Array<u64> = Array::with_max_entries(TOTAL_PLACES, BPF_F_MMAPABLE);
/// Room for every place of every endpoint.
#[map]
static FRAGMENTS: HashMap<FragmentKey, Fragment> =
    HashMap::with_max_entries(4_096 * FRAGMENTS_EACH, BPF_F_NO_PREALLOC);
#[map]
static RESOLVERS: HashMap<Address, u32> = HashMap::with_max_entries(2 * RESOLVERS_MAX as u32, 0);
/// IPv4 addresses by slot, then IPv6 addresses.
#[map]
static RESOLVER_SLOTS: Array<Address> = Array::with_max_entries(2 * RESOLVERS_MAX as u32, 0);
#[map]
static HITS: PerCpuHashMap<HitKey, u64> =
    PerCpuHashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
/// By direction and number of reason; the last of a direction counts events that were lost.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2 * COUNTER_SLOTS, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What is found out about a packet: too large for the stack.
#[map]
static CASE: PerCpuArray<Case> = PerCpuArray::with_max_entries(1, 0);

/// The clock as this processor last read it.
#[map]
static CLOCK: PerCpuArray<Clock> = PerCpuArray::with_max_entries(1, 0);

/// A reading of the coarse clock, which stands still between two jiffies.
#[repr(C)]
struct Clock {
    jiffies: u64,
    now_ns: u64,
}

/// All of the above.
pub(crate) struct KernelMaps;

impl Gate<Skb> for KernelMaps {
    #[inline(always)]
    fn admit(&self, packet: &Skb, scene: &Scene, case: &mut Case) -> Result<(), DropReason> {
        core::hint::black_box(core::ptr::from_mut(case));
        outcome(admit_frame(packet.context(), scene.flags()))
    }
}

impl Maps for KernelMaps {
    #[inline(always)]
    fn ask(
        &mut self,
        question: Question,
        now_ns: u64,
        is_from_node: bool,
        case: &mut Case,
    ) -> Result<(), DropReason> {
        // The function finds the case by itself; the compiler has to know that it may write to it.
        core::hint::black_box(core::ptr::from_mut(case));
        outcome(ask_rules(question.number(), now_ns, is_from_node as u32))
    }

    #[inline(always)]
    fn track(&mut self, scene: &Scene, case: &mut Case) -> Result<Pass, DropReason> {
        core::hint::black_box(core::ptr::from_mut(case));
        let number = track_flow(scene.now_ns, scene.flags()) as u8;
        match Pass::from_number(number) {
            Some(pass) => Ok(pass),
            None => Err(DropReason::from_number(number).unwrap_or(DropReason::MissingRow)),
        }
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        // SAFETY: user space replaces whole entries; a reader keeps the one it found (RCU).
        unsafe { ENDPOINTS.get(ifindex) }
    }

    #[inline(always)]
    fn passage(&self, ifindex: u32) -> Option<Passage> {
        if let Some(place) = PASSAGES.get_ptr(ifindex % PLACES) {
            // SAFETY: whole words, which user space may write meanwhile: each is read once.
            let passage = unsafe {
                Passage {
                    whose: (&raw const (*place).whose).read_volatile(),
                    current: (&raw const (*place).current).read_volatile(),
                    source: (&raw const (*place).source).read_volatile(),
                }
            };
            if passage.is_of(ifindex) {
                return Some(passage);
            }
        }
        Some(Passage::of(ifindex, self.endpoint(ifindex)?))
    }

    #[inline(always)]
    fn resolver_slot(&self, address: &Address) -> Option<u32> {
        // SAFETY: a single word.
        unsafe { RESOLVERS.get(address) }.copied()
    }

    #[inline(always)]
    fn has_resolver(&self, slot: u32, is_v4: bool) -> bool {
        resolver(slot, is_v4).is_some()
    }

    #[inline(always)]
    fn identity(&self, address: &Address) -> Option<u32> {
        if is_vacant(address) {
            return None;
        }
        // SAFETY: a single word.
        unsafe { IPCACHE.get(address) }.copied()
    }

    #[inline(always)]
    fn range_identity(&self, address: &Address) -> Option<u32> {
        RANGES.get(Key::new(128, *address)).copied()
    }

    #[inline(always)]
    fn table(&self, key: &TableKey) -> Option<&Table> {
        // SAFETY: the rows of a table are written before an endpoint names it.
        unsafe { TABLES.get(key) }
    }

    #[inline(always)]
    fn peers(&self, key: &PeerKey) -> Option<&RuleSet> {
        // SAFETY: as for tables.
        unsafe { PEERS.get(key) }
    }

    #[inline(always)]
    fn cidr(&self, key: &CidrKey) -> Option<&RuleSet> {
        CIDRS.get(Key::new(CidrKey::PREFIX_BASE + 128, *key))
    }

    #[inline(always)]
    fn ports(&self, key: &PortKey) -> Option<&RuleSet> {
        // SAFETY: as for tables.
        unsafe { PORTS.get(key) }
    }

    #[inline(always)]
    fn name(&self, key: &NameKey) -> Option<&NameEntry> {
        // SAFETY: numbers, each read whole. A reader that races with the removal of this entry and
        // the reuse of its memory may see another entry's deadline and class. A class is looked up in
        // this endpoint's own table, so at worst one packet finds rules of its own identity that were
        // opened for another address.
        unsafe { NAMES.get(key) }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        if is_vacant(&key.address) {
            return None;
        }
        // SAFETY: user space replaces whole entries, after the list that they name.
        unsafe { SERVICES.get(key) }
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<&Backend> {
        // SAFETY: as for services.
        unsafe { BACKENDS.get(key) }
    }

    #[inline(always)]
    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        // SAFETY: words of an entry may be written by two processors at once, and each is whole.
        FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
    }

    #[inline(always)]
    fn claim_flow(&mut self, key: &QuotaKey, may: impl FnOnce(u64, u64) -> bool) -> Option<bool> {
        // SAFETY: words, each written whole. Where two processors add at once one may be lost (the
        // target has no atomic addition in stable Rust); the next sweep counts what is really there.
        unsafe {
            let (released, opened) = (*RELEASED.get(key)?, OPENED.get_ptr_mut(key)?);
            let all_released = TOTALS.get_ptr(TOTAL_RELEASED)?.read_volatile();
            let all = TOTALS.get_ptr_mut(TOTAL_OPENED)?;
            if !may((*opened).wrapping_sub(released), (*all).wrapping_sub(all_released)) {
                return Some(false);
            }
            *opened = (*opened).wrapping_add(1);
            *all = (*all).wrapping_add(1);
        }
        Some(true)
    }

    #[inline(always)]
    fn put_flow(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), Full> {
        FLOWS.insert(key, flow, 0).map_err(|_| Full)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        // SAFETY: a place that is taken gets another entry as a whole; a reader keeps the one that it
        // found (RCU).
        unsafe { FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn put_fragment(&mut self, key: &FragmentKey, fragment: &Fragment) -> Result<(), Full> {
        FRAGMENTS.insert(key, fragment, 0).map_err(|_| Full)
    }

    #[inline(always)]
    fn hit(&mut self, key: &HitKey) {
        if let Some(hits) = HITS.get_ptr_mut(key) {
            // SAFETY: the value belongs to this processor, and classifiers are not preempted.
            unsafe { *hits = (*hits).wrapping_add(1) };
        }
    }
}

/// Whether the block of an address is known to be empty. User space says so no longer before it writes what
/// is in it.
#[inline(always)]
fn is_vacant(address: &Address) -> bool {
    let block = address.block();
    // SAFETY: a word, which user space may write meanwhile: read once.
    let word = VACANT.get_ptr(block / u64::BITS).map(|word| unsafe { word.read_volatile() });
    word.is_some_and(|word| word >> (block % u64::BITS) & 1 != 0)
}

/// What a function of our own returned: zero, or the number of a [`DropReason`].
#[inline(always)]
fn outcome(reason: u32) -> Result<(), DropReason> {
    if reason == 0 {
        return Ok(());
    }
    Err(DropReason::from_number(reason as u8).unwrap_or(DropReason::MissingRow))
}

/// Reads a frame into this processor's case and checks its source. Global like [`ask_rules`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn admit_frame(skb: *mut __sk_buff, flags: u32) -> u32 {
    let Some(case) = case() else {
        return DropReason::MissingRow as u32;
    };
    let packet = Skb(TcContext::new(skb));
    let scene = Scene::from_flags(packet.ifindex(), flags, 0);
    match admit(&packet, &KernelMaps, &scene, case) {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// Judges the packet of this processor's case by its flow: the number of a [`Pass`] or of a
/// [`DropReason`]. Global like [`ask_rules`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn track_flow(now_ns: u64, flags: u32) -> u32 {
    let Some(case) = case() else {
        return DropReason::MissingRow as u32;
    };
    let scene = Scene::from_flags(case.key.ifindex, flags, now_ns);
    match track(&mut KernelMaps, &scene, case) {
        Ok(pass) => pass as u32,
        Err(reason) => reason as u32,
    }
}

/// Answers a question about this processor's case: zero, or the number of a [`DropReason`]. A global
/// function, which the verifier checks once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ask_rules(question: u64, now_ns: u64, is_from_node: u32) -> u32 {
    let Some(case) = case() else {
        return DropReason::MissingRow as u32;
    };
    let question = Question::from_number(question);
    match answer(&KernelMaps, question, now_ns, is_from_node != 0, case) {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// The resolver of a family in a slot.
#[inline(always)]
pub(crate) fn resolver(slot: u32, is_v4: bool) -> Option<&'static Address> {
    let place = if is_v4 { slot } else { slot.wrapping_add(RESOLVERS_MAX as u32) };
    RESOLVER_SLOTS.get(place).filter(|address| !address.is(&Address::UNSPECIFIED))
}

/// The configuration.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Counts a packet.
#[inline(always)]
pub(crate) fn count(direction: Direction, counter: u8) {
    let place = direction as u32 * COUNTER_SLOTS + counter as u32;
    if let Some(packets) = COUNTERS.get_ptr_mut(place) {
        // SAFETY: as in `hit`.
        unsafe { *packets = (*packets).wrapping_add(1) };
    }
}

/// The monotonic clock, as of the last tick. Reading it costs more than a known flow has time for, so
/// that it is read once a tick.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helpers take nothing and read clocks.
    let (jiffies, read) = unsafe { (bpf_jiffies64(), || bpf_ktime_get_coarse_ns()) };
    let Some(clock) = CLOCK.get_ptr_mut(0) else {
        return read();
    };
    // SAFETY: as in `hit`.
    let clock = unsafe { &mut *clock };
    if clock.jiffies != jiffies {
        clock.now_ns = read();
        clock.jiffies = jiffies;
    }
    clock.now_ns
}

/// This processor's case; it belongs to one packet at a time, since classifiers are not preempted.
#[inline(always)]
pub(crate) fn case() -> Option<&'static mut Case> {
    // SAFETY: see above; zeroes, with which the kernel fills the map, are a case too.
    CASE.get_ptr_mut(0).map(|case| unsafe { &mut *case })
}

/// Hands a record of this processor's case to user space, or counts it as lost.
#[inline(always)]
pub(crate) fn tell(scene: &Scene, case: &Case, counter: u8, told: EventVerdict) {
    core::hint::black_box(core::ptr::from_ref(case));
    let outcome = (counter as u32) << 8 | told as u32;
    tell_user(scene.now_ns, scene.ifindex, scene.flags(), outcome);
}

/// Global like [`ask_rules`]. `outcome` is what the packet counts as, and how it is told.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_user(now_ns: u64, ifindex: u32, flags: u32, outcome: u32) -> u32 {
    let Some(case) = case() else {
        return 0;
    };
    let scene = Scene::from_flags(ifindex, flags, now_ns);
    let told = EventVerdict::from_number(outcome as u8).unwrap_or(EventVerdict::Dropped);
    match EVENTS.reserve::<Event>(0) {
        Some(mut place) => {
            place.write(case.event(&scene, (outcome >> 8) as u8, told));
            place.submit(0);
        }
        None => count(scene.direction, (COUNTER_SLOTS - 1) as u8),
    }
    0
}
