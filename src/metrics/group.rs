//! Metrics whose names begin alike.

use prometheus::core::Collector;
use prometheus::{Registry, Result};

/// Registers metrics, and remembers what they are.
pub(super) struct Group {
    registry: Registry,
    #[cfg(test)]
    described: Vec<Described>,
}

/// What a metric is, whether or not it has a value yet.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) labels: Vec<String>,
}

impl Group {
    /// No metrics, whose names will begin with `prefix` and an underscore.
    pub(super) fn new(prefix: Option<&str>) -> Result<Self> {
        Ok(Self {
            registry: Registry::new_custom(prefix.map(str::to_owned), None)?,
            #[cfg(test)]
            described: Vec::new(),
        })
    }

    /// Takes in a metric that could be made.
    pub(super) fn add<C: Collector + Clone + 'static>(&mut self, collector: Result<C>) -> Result<C> {
        let collector = collector?;
        self.registry.register(Box::new(collector.clone()))?;
        #[cfg(test)]
        self.describe(&collector);
        Ok(collector)
    }

    pub(super) fn finish(self) -> Registered {
        Registered {
            registry: self.registry,
            #[cfg(test)]
            described: self.described.into(),
        }
    }

    #[cfg(test)]
    fn describe(&mut self, collector: &impl Collector) {
        for (family, desc) in collector.collect().iter().zip(collector.desc()) {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let mut labels = desc.variable_labels.clone();
            labels.extend(desc.const_label_pairs.iter().map(|pair| pair.name().to_owned()));
            labels.sort();
            self.described.push(Described { name: desc.fq_name.clone(), kind, labels });
        }
    }
}

/// A group that is complete. Cloning shares its metrics.
#[derive(Clone)]
pub(super) struct Registered {
    pub(super) registry: Registry,
    /// By the names without the prefix.
    #[cfg(test)]
    pub(super) described: std::sync::Arc<[Described]>,
}
