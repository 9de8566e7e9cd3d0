/** Outlive as a library: load a configuration, start a gateway, stop it. */
export { type Config, type ConfigInput, loadConfig, normalizeConfig, parseConfig, Sensitive } from './config/index.js';
export { type Gateway, startGateway } from './gateway.js';
export { createLog } from './log.js';
