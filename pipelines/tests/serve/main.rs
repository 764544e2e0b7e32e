//! `tweedie serve`, over HTTP as its clients speak it.
#![cfg(feature = "server")]

#[path = "../tweedie/mod.rs"]
mod tweedie;

mod a1111;
mod access;
mod jobs;
mod models;
mod openai;
mod restarts;
mod running;
