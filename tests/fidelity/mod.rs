//! What the tests of fidelity share: generators of machines, the ways they take, what is compared at the end.
#![allow(dead_code)]

pub(crate) mod limits;
pub(crate) mod python;
pub(crate) mod routes;
pub(crate) mod travel;
pub(crate) mod trees;
