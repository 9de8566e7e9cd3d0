export { type Claimed, KeeperClient, type KeeperClientOptions, requestUpgrade } from './client.js';
export type { HoldingLimits } from './holdings.js';
export { readMemory, type SharedMemory, shareMemory } from './memory.js';
export { closeDescriptor, type Positions, passingUnavailable, socketPositions } from './passing.js';
export { type OwnProcess, onSignals, type ProcessEnd, startProcess } from './process.js';
export { type Asked, type Kind, MAX_NAME, MAX_NOTE } from './protocol.js';
export { KeeperServer, type KeeperServerOptions } from './server.js';
