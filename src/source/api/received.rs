//! Objects as they come in. kube wants to know what they are and which version they have; decoded is no more of them than is read.

use crate::source::{Kind, Object, decoding};
use desired::object::{EndpointSlice, Node, ObjectMeta, Service};
use k8s_openapi::api::{core, discovery};
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt::Debug;

/// A kind of object that is watched.
pub(super) trait Watched: Into<Object> + Clone + Debug + DeserializeOwned + Send + 'static {
    const KIND: Kind;
    /// What the API calls it, and where it is found there.
    type Known: Resource<DynamicType = ()>;

    fn metadata(&self) -> &ObjectMeta;

    fn metadata_mut(&mut self) -> &mut ObjectMeta;
}

/// An object that has come in.
#[derive(Clone, Debug)]
pub(super) struct Received<T>(pub(super) T);

impl<'de, T: Watched> Deserialize<'de> for Received<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decoding::counted(|| T::deserialize(deserializer)).map(Self)
    }
}

impl<T: Watched> Resource for Received<T> {
    type DynamicType = ();
    type Scope = <T::Known as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        T::Known::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        T::Known::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        T::Known::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::Known::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.metadata_mut()
    }
}

macro_rules! watched {
    ($object:ident, $known:ty) => {
        impl Watched for $object {
            const KIND: Kind = Kind::$object;
            type Known = $known;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

watched!(Service, core::v1::Service);
watched!(EndpointSlice, discovery::v1::EndpointSlice);
watched!(Node, core::v1::Node);
