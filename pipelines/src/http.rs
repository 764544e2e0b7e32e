//! How this program speaks HTTP.

use std::time::Duration;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

/// Without an answer, or without a byte, for so long a server is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The configuration of an agent, to be completed.
pub(crate) fn agent_config() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .user_agent(concat!("tweedie/", env!("CARGO_PKG_VERSION")))
}
