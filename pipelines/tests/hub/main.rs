//! Models by their names on the hub: the real client, and a small server on the loopback address in the hub's place.
#![cfg(feature = "hub")]

#[path = "../server/mod.rs"]
mod server;
#[path = "../tweedie/mod.rs"]
mod tweedie;

mod cache;
mod fake;
mod fetching;
mod names;
