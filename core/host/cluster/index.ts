export { Choice, type Wish } from './choice.js';
export { Cluster, type ClusterOptions } from './cluster.js';
export type { Outside } from './outside.js';
export {
  type AcquireRequest,
  type BackendConnection,
  type ClusterEvent,
  type Doubt,
  LoginRefused,
  type Origin,
  type ServerState,
} from './types.js';
