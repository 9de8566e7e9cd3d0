export { fileReader } from './files.js';
export { type Environment, loadConfig, normalizeConfig, parseConfig } from './load.js';
export { ConfigError, type Problem } from './problems.js';
export { type ConfigInput, configJsonSchema, type SecretInput } from './schema.js';
export { Sensitive } from './sensitive.js';
export type {
  ActionUse,
  Address,
  AddressConfig,
  ClusterConfig,
  Config,
  FailoverConfig,
  LimitsConfig,
  ListenerConfig,
  LoadedFile,
  LogConfig,
  MisplacedReason,
  MonitorConfig,
  PairConfig,
  PeerConfig,
  PluginUse,
  PromotionConfig,
  ServerConfig,
  SessionBalanceConfig,
} from './types.js';
export { formatDuration, formatSize, parseDuration, parseSize } from './units.js';
