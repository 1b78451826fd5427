//! Giving back memory that is not needed any more.
//!
//! Reading objects and loading programs runs through most of the program's text once. The kernel keeps
//! those pages with the process until memory is short, and whoever sizes a node by what is resident
//! pays for them meanwhile.

#![expect(unsafe_code, reason = "advice about memory takes addresses")]

use std::fs;
use std::io;
use std::ops::Range;

/// Gives back the pages of this program's own text and constants, and of its libraries' text; whatever is
/// needed again comes back from the files by itself. Says how many octets of files are mapped so.
pub fn release_text() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut octets = 0;
    for range in unwritten(&maps, &program.to_string_lossy()) {
        octets += range.len();
        // SAFETY: the pages are those of a private mapping of a program's or library's file that nothing
        // ever wrote to: they come back with the same content, since a file that runs cannot be changed
        // (ETXTBSY), and a library that is replaced is another file; one that was removed is left out.
        // Such mappings stay where they are until the process ends: nothing in this program calls
        // dlclose, so none goes between the list and the call.
        if unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(octets)
}

/// Gives back what the allocator holds and does not use. Whoever allocates meanwhile may wait for some
/// milliseconds.
pub fn release_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no address, and no allocation that is in use moves.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The mappings that no relocation touched: text, and the constants that begin the file of `program`. What
/// is read-only after relocation lies further on.
fn unwritten(maps: &str, program: &str) -> Vec<Range<usize>> {
    let ranges = maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (range, rights, offset) = (words.next()?, words.next()?, words.next()?);
        let path = words.nth(2)?;
        // What has no path any more is nobody's to keep as it was; a file in memory takes writes.
        let has_file =
            path.starts_with('/') && !path.starts_with("/memfd:") && !line.contains(" (deleted)");
        let is_text = rights == "r-xp" && has_file;
        let begins_file = rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (is_text || begins_file && has_file && path == program)
            .then_some(address(start)?..address(end)?)
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55c10dc82000-55c10e2d7000 r--p 00000000 fe:00 42 /usr/bin/namegate
55c10e2d7000-55c10f604000 r-xp 00655000 fe:00 42 /usr/bin/namegate
55c10f604000-55c10f69a000 r--p 01981000 fe:00 42 /usr/bin/namegate
55c10f69a000-55c10f69d000 rw-p 01a16000 fe:00 42 /usr/bin/namegate
55c122ed7000-55c123466000 rw-p 00000000 00:00 0 [heap]
7f8a9b4cf000-7f8a9b4f5000 r--p 00000000 fe:00 43 /usr/lib/libc.so.6
7f8a9b4f5000-7f8a9b64b000 r-xp 00026000 fe:00 43 /usr/lib/libc.so.6
7f8a9c000000-7f8a9c001000 r-xp 00000000 00:01 44 /memfd:made (deleted)
7f8a9c001000-7f8a9c002000 r-xp 00000000 00:01 44 /memfd:made
7f8a9c002000-7f8a9c003000 r-xp 00000000 fe:00 45 /usr/lib/libold.so.1 (deleted)
7ffd1a3f0000-7ffd1a3f2000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn only_what_no_relocation_touched_is_given_back() {
        let ranges = unwritten(MAPS, "/usr/bin/namegate");
        assert_eq!(
            ranges,
            [
                0x55c1_0dc8_2000..0x55c1_0e2d_7000,
                0x55c1_0e2d_7000..0x55c1_0f60_4000,
                0x7f8a_9b4f_5000..0x7f8a_9b64_b000,
            ]
        );
    }

    #[test]
    fn program_goes_on_with_less_of_it_in_memory() {
        let resident = || {
            let text = fs::read_to_string("/proc/self/smaps").unwrap();
            let program = fs::read_link("/proc/self/exe").unwrap().display().to_string();
            let mut is_text = false;
            let lines = text.lines().filter_map(|line| {
                // Fields have a colon after their name, and mappings begin with their range.
                if !line.split(' ').next().is_some_and(|word| word.ends_with(':')) {
                    is_text = line.contains(" r-xp ") && line.ends_with(&program);
                }
                let rest = line.strip_prefix("Rss:").filter(|_| is_text)?;
                rest.split_ascii_whitespace().next()?.parse::<usize>().ok()
            });
            lines.sum::<usize>()
        };
        let before = resident();
        assert!(before > 0);
        assert!(release_text().unwrap() > before << 10);
        assert!(resident() < before, "{before} KiB before, {} after", resident());
    }
}
