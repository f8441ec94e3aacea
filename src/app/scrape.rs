//! What others keep, as the metrics want it.

use crate::auth::Gate;
use crate::route::Registry;
use crate::telemetry::{ModelInfo, ModelScrape, TicketLoad};

/// Tickets of TLS.
pub(super) fn tickets(gate: &Gate) -> TicketLoad {
    let counts = gate.tickets().counts();
    TicketLoad {
        issued: counts.issued,
        redeemed: counts.redeemed,
        replayed: counts.spent,
        unknown: counts.unknown,
        too_old: counts.too_old,
        evicted: counts.evicted,
        forgotten: counts.forgotten,
        live: counts.live,
        early_ids: gate.early_ids(),
    }
}

/// The models that have been ready, as they are now.
pub(super) fn models(registry: &Registry) -> Vec<ModelScrape> {
    let models = registry.models().into_iter();
    models
        .map(|(card, engine)| ModelScrape {
            name: card.name,
            is_ready: engine.is_some(),
            info: ModelInfo {
                context: card.context,
                parameters: card.parameters,
                bytes: card.bytes,
            },
            load: engine
                .map(|engine| engine.gauges().load)
                .unwrap_or_default(),
        })
        .collect()
}
