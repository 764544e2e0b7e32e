//! What a picture carries of how it was made: the request that makes it, settled, and what it was made from.

pub(crate) mod provenance;
pub(crate) mod record;
pub mod reuse;
