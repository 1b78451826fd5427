//! From a town that shows a failure to a small one that still does.

use serde_json::Value;

use super::Documents;

impl Documents {
    /// Takes away what `fails` does not need: flows, lessons, documents, and entries of lists and
    /// optional fields inside the documents, one at a time until nothing more can go.
    ///
    /// `fails` is asked about towns whose documents are all accepted, and must hold for `self`.
    pub fn shrink(mut self, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let mut is_smaller = true;
        while is_smaller {
            is_smaller = false;
            is_smaller |= self.shrink_list(|town| &mut town.flows, &mut fails);
            is_smaller |= self.shrink_list(|town| &mut town.lessons, &mut fails);
            is_smaller |= self.shrink_list(|town| &mut town.documents, &mut fails);
            is_smaller |= self.shrink_documents(&mut fails);
        }
        self
    }

    fn keeps_failing(&self, fails: &mut impl FnMut(&Self) -> bool) -> bool {
        self.case().is_ok() && fails(self)
    }

    /// Takes away runs of entries, the longest first.
    fn shrink_list<T: Clone>(
        &mut self,
        list: fn(&mut Self) -> &mut Vec<T>,
        fails: &mut impl FnMut(&Self) -> bool,
    ) -> bool {
        let mut is_smaller = false;
        let mut run = list(self).len();
        while run > 0 {
            let mut at = 0;
            while at < list(self).len() {
                let mut candidate = self.clone();
                let end = (at + run).min(list(&mut candidate).len());
                list(&mut candidate).drain(at..end);
                if candidate.keeps_failing(fails) {
                    *self = candidate;
                    is_smaller = true;
                } else {
                    at += run;
                }
            }
            run /= 2;
        }
        is_smaller
    }

    /// Takes away single entries and fields inside the documents.
    fn shrink_documents(&mut self, fails: &mut impl FnMut(&Self) -> bool) -> bool {
        let mut is_smaller = false;
        for index in 0..self.documents.len() {
            let mut place = 0;
            loop {
                let mut candidate = self.clone();
                if !remove(&mut candidate.documents[index], &mut place.clone()) {
                    break;
                }
                if candidate.keeps_failing(fails) {
                    *self = candidate;
                    is_smaller = true;
                } else {
                    place += 1;
                }
            }
        }
        is_smaller
    }
}

/// Removes the `place`th entry or field of a document, counted from the outside; `false` where it
/// has fewer.
fn remove(value: &mut Value, place: &mut usize) -> bool {
    match value {
        Value::Array(list) => {
            if *place < list.len() {
                list.remove(*place);
                return true;
            }
            *place -= list.len();
            list.iter_mut().any(|inner| remove(inner, place))
        }
        Value::Object(fields) => {
            if let Some(name) = fields.keys().nth(*place).cloned() {
                fields.remove(&name);
                return true;
            }
            *place -= fields.len();
            fields.values_mut().any(|inner| remove(inner, place))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
