/** What SQL text means to the gateway: statements, their effects, and what of it is safe to repeat. Pure; no I/O. */

export { QueryCache, type QueryCacheOptions } from './cache.js';
export { CATALOGUE_QUERY, type Catalogue, isPlainRead, parseCatalogue, UNKNOWN_CATALOGUE } from './catalogue.js';
export { classifyStatement, EMPTY_FACTS, OPAQUE_FACTS } from './classify.js';
export {
  type Effect,
  type IsolationLevel,
  type SetConfigFact,
  type SetFact,
  type SqlEnvironment,
  type StatementFacts,
  type TransactionModes,
  UNSAFE_ENCODINGS,
} from './facts.js';
export { HARMLESS_VOLATILE, SESSION_FUNCTIONS, type SessionFunction } from './functions.js';
export { lex, Tokens } from './lexer.js';
export { analyseQuery, type QueryFacts, type Statement } from './query.js';
export { type Segment, type Segmentation, segment, segmentText } from './segment.js';
export { type StatementRange, splitStatements } from './split.js';
