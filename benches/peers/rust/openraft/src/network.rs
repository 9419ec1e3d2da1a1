//! A network that is none: a request to a peer is a call of its method.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Raft};

use crate::store::{Machine, Types};

pub type Node = Raft<Types, Machine>;

/// Who can be called. Nodes are added when they are started.
#[derive(Clone, Default)]
pub struct Calls(pub Arc<Mutex<BTreeMap<u64, Node>>>);

impl RaftNetworkFactory<Types> for Calls {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &()) -> Peer {
        let nodes = self.0.lock().expect("nobody panics with it");
        Peer(nodes[&target].clone())
    }
}

/// One peer.
pub struct Peer(Node);

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = u64;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer = self.0.append_entries(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.0.vote(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, u64>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let answer = self.0.install_full_snapshot(vote, snapshot).await;
        answer.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
    }
}
