//! The socket buffer as a `Packet`.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use namegate_egress_bpf::packet::Packet;

pub(crate) struct Skb(pub(crate) TcContext);

impl Skb {
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context is the one that the kernel called the program with.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// Where `length` octets from `offset` on are, if the linear part holds them.
    #[inline(always)]
    fn linear(&self, offset: usize, length: usize) -> Option<usize> {
        let at = self.0.data() + offset;
        (at + length <= self.0.data_end()).then_some(at)
    }

    /// The context.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }

    /// The interface that received the packet; zero where none did.
    #[inline(always)]
    pub(crate) fn received_by(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0.skb.skb).ingress_ifindex }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.len()
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let at = self.linear(offset, 4 * N)? as *const [u32; N];
        // SAFETY: `linear` says that they are there. They are read as the kernel reads headers: where
        // its drivers do not align them, the machine reads what is not aligned.
        Some(unsafe { at.read() })
    }

    #[inline(always)]
    fn halfwords<const N: usize>(&self, offset: usize) -> Option<[u16; N]> {
        let at = self.linear(offset, 2 * N)? as *const [u16; N];
        // SAFETY: as above.
        Some(unsafe { at.read() })
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut octets = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the destination has room for the `N` octets that are asked for; the helper fails
        // where the packet ends before, linear or not.
        unsafe {
            let failed = bpf_skb_load_bytes(
                self.0.as_ptr(),
                offset as u32,
                octets.as_mut_ptr().cast(),
                N as u32,
            );
            (failed == 0).then(|| octets.assume_init())
        }
    }
}
