/// The number of rules that one direction of a table can hold.
pub const RULES_MAX: usize = 512;

/// The number of words of a [`RuleSet`].
pub const WORDS: usize = RULES_MAX / 64;

/// A set of the rules of one direction of a table, as a bit vector: lower bits take precedence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RuleSet {
    /// Bit `n` is bit `n % 64` of word `n / 64`.
    pub words: [u64; WORDS],
}

const _: () = assert!(size_of::<RuleSet>() == 64);

impl RuleSet {
    /// No rule.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// The set of these rules; numbers past [`RULES_MAX`] are left out.
    pub fn of(rules: impl IntoIterator<Item = u16>) -> Self {
        let mut set = Self::EMPTY;
        for rule in rules {
            set.insert(rule);
        }
        set
    }

    /// Adds a rule and says whether the set can hold it.
    pub fn insert(&mut self, rule: u16) -> bool {
        match self.words.get_mut(usize::from(rule) / 64) {
            Some(word) => {
                *word |= 1 << (rule % 64);
                true
            }
            None => false,
        }
    }

    /// Whether `rule` is in the set.
    pub fn contains(&self, rule: u16) -> bool {
        self.words.get(usize::from(rule) / 64).is_some_and(|word| word >> (rule % 64) & 1 == 1)
    }

    /// Whether no rule is in the set.
    pub fn is_empty(&self) -> bool {
        self.words == [0; WORDS]
    }

    /// The rules in both or either.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        for (word, more) in self.words.iter_mut().zip(other.words) {
            *word |= more;
        }
        self
    }

    /// The rules of this set that are not in `other`.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        for (word, less) in self.words.iter_mut().zip(other.words) {
            *word &= !less;
        }
        self
    }
}
