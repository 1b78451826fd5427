//! Query ids, sockets and letter case from the kernel's random number generator, fetched by the page.

use rustix::rand::{GetRandomFlags, getrandom};

/// A stock of random numbers.
pub(crate) struct Entropy {
    stock: [u8; 512],
    used: usize,
}

/// The kernel gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gave no random numbers")]
pub(crate) struct EntropyError;

impl Entropy {
    pub(crate) fn new() -> Self {
        Self { stock: [0; 512], used: 512 }
    }

    /// A number that nobody can foresee.
    pub(crate) fn id(&mut self) -> Result<u16, EntropyError> {
        if self.used + 2 > self.stock.len() {
            let filled = getrandom(&mut self.stock, GetRandomFlags::empty());
            if filled != Ok(self.stock.len()) {
                return Err(EntropyError);
            }
            self.used = 0;
        }
        let id = crate::wire::u16_at(&self.stock, self.used).ok_or(EntropyError)?;
        self.used += 2;
        Ok(id)
    }

    /// Gives each letter of `name` a case of its own, so that an answer has to repeat it (the 0x20
    /// bit). What is no letter stays: lengths of labels are below any letter.
    pub(crate) fn shuffle_case(&mut self, name: &mut [u8]) -> Result<(), EntropyError> {
        for octets in name.chunks_mut(16) {
            let bits = self.id()?;
            for (place, octet) in octets.iter_mut().enumerate() {
                if octet.is_ascii_alphabetic() && bits >> place & 1 == 1 {
                    *octet ^= 0x20;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_changes_and_the_name_does_not() {
        let name =
            b"\x3fabcdefghijklmnopqrstuvwxyz-0123456789_@[`{\x00\xc3\xa9 abcdefghijklmnopqr\x00";
        let mut shuffled = *name;
        Entropy::new().shuffle_case(&mut shuffled).unwrap();
        assert!(shuffled.eq_ignore_ascii_case(name));
        assert_ne!(&shuffled, name, "44 letters keep their case once in 2^44");
    }
}
