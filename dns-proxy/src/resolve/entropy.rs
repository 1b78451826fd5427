//! Query ids from the kernel's random number generator, fetched by the page.

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
}
