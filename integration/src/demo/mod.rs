//! The demo: a story told step by step on a real town, each step checked.
