import type { StatementFacts } from './facts.js';
import { HARMLESS_VOLATILE } from './functions.js';
import { RECENT_FORMS } from './keywords.js';

/**
 * What must be known of a database to tell a plain read from its text: names only, without schemas, so a name is safe
 * only if everything of that name in any schema is.
 *
 * Limits. A function that is declared STABLE or IMMUTABLE is believed, although PostgreSQL lets it call a volatile one
 * out of sight (dependencies are known of BEGIN ATOMIC bodies and of default arguments, not of bodies given as strings).
 * A column whose type contains a domain with a volatile check is not seen where a value is cast to the whole type. What
 * changes after the query was run is not known; StatementFacts.changesCatalogue tells of the own statements.
 */
export interface Catalogue {
  /** Function names of which no overload is volatile, or only harmless functions of the server itself. */
  readonly safeFunctions: ReadonlySet<string>;
  /** Names with an overload that may write: volatile itself, or by what it is known to depend on. */
  readonly volatileFunctions: ReadonlySet<string>;
  /**
   * Names that must not occur in a plain read at all: views that (transitively) call such a function, tables with such a
   * row security policy, foreign tables and their parents, domains with such a check, types with such a cast, and
   * functions that can be called as an attribute of a row (`t.f` for `f(t)`).
   */
  readonly taintedRelations: ReadonlySet<string>;
  /** Symbols of operators backed by such functions. */
  readonly volatileOperators: ReadonlySet<string>;
  /** Some tainted name is not ASCII, so a text whose names are not known for sure may mean it. */
  readonly taintedBeyondAscii: boolean;
  /** Own functions whose body touches the state of the session (locks, settings, temporary tables), by their text. */
  readonly sessionFunctions: ReadonlySet<string>;
  /** Such a function is a trigger: any write may call it. */
  readonly sessionTriggers: boolean;
  /** Names of settings that own functions set for the session. */
  readonly customSettings: ReadonlySet<string>;
  /** No text can be told: an implicit cast, or an operator that grammar uses without its symbol, is volatile. */
  readonly guardEverything: boolean;
}

/** Before the catalogue is known: no query is plain. */
export const UNKNOWN_CATALOGUE: Catalogue = Object.freeze({
  safeFunctions: new Set<string>(),
  volatileFunctions: new Set<string>(),
  taintedRelations: new Set<string>(),
  volatileOperators: new Set<string>(),
  sessionFunctions: new Set<string>(),
  sessionTriggers: false,
  customSettings: new Set<string>(),
  taintedBeyondAscii: true,
  guardEverything: true,
});

/** Used by IN, BETWEEN, LIKE, CASE x WHEN, ORDER BY, DISTINCT and the like without being written. */
const IMPLICIT_OPERATORS: ReadonlySet<string> = new Set('= <> < > <= >= ~~ !~~ ~~* !~~* ~ !~'.split(' '));

/** A function body with this in it takes locks, makes temporary tables or cursors, or changes settings, beyond its transaction. */
const SESSION_BODY =
  'advisory_lock|set_config\\s*\\([^;]*\\mfalse\\M|\\mcreate\\s+(local\\s+)?temp|\\minto\\s+temp|with\\s+hold|\\mdeallocate\\M|\\mdiscard\\M';

const harmless = [...HARMLESS_VOLATILE].map((name) => `'${name}'`).join(',');

/**
 * One row [kind, name] for every fact: s(afe function), v(olatile function), t(ainted name), o(perator), h(azard),
 * u(ser function that touches the session), U (the same as a trigger), c(ustom setting that a function sets).
 *
 * Needs no privileges; PostgreSQL 13 and later; some 10 ms, and as much again for every few hundred views. Objects below
 * oid 16384 are the server's own, and pg_depend says nothing about those, so calls of the server's own writing functions
 * are looked for in the trees of views and policies. What is found goes through unnest because the planner then expects
 * ten rows of it: with its own guess the recursion looks so dear that servers spend a second on compiling the query (JIT).
 */
export const CATALOGUE_QUERY = `
WITH RECURSIVE own AS MATERIALIZED (
  SELECT oid FROM pg_catalog.pg_proc
  WHERE oid < 16384 AND provolatile = 'v' AND prorettype NOT IN (2279, 3838) AND proname NOT IN (${harmless})
), pattern AS MATERIALIZED (
  SELECT ':funcid (' || pg_catalog.string_agg(oid::pg_catalog.text, '|') || ') ' AS calls FROM own
), found AS MATERIALIZED (
  SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid AS class, oid AS id FROM pg_catalog.pg_proc
  WHERE oid >= 16384 AND provolatile = 'v' AND prokind IN ('f', 'w') AND prorettype NOT IN (2279, 3838)
  UNION ALL
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, oid FROM pg_catalog.pg_class WHERE relkind = 'f'
  UNION ALL
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.ev_class
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class AND c.relkind = 'v'
  WHERE r.oid >= 16384 AND r.ev_type = '1' AND r.ev_action::pg_catalog.text ~ (SELECT calls FROM pattern)
  UNION ALL
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, polrelid FROM pg_catalog.pg_policy
  WHERE polqual::pg_catalog.text ~ (SELECT calls FROM pattern)
), tainted(class, id) AS (
  SELECT class, id FROM ROWS FROM (
    pg_catalog.unnest(ARRAY(SELECT class FROM found)), pg_catalog.unnest(ARRAY(SELECT id FROM found))) base(class, id)
  UNION
  SELECT next.class, next.id FROM tainted t CROSS JOIN LATERAL (
    SELECT d.classid AS class, d.objid AS id FROM pg_catalog.pg_depend d
    WHERE d.refclassid = t.class AND d.refobjid = t.id AND (
      d.classid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass)
      OR d.classid = 'pg_catalog.pg_cast'::pg_catalog.regclass AND t.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
      OR d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND t.class = 'pg_catalog.pg_type'::pg_catalog.regclass)
    UNION ALL
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.ev_class FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class AND c.relkind = 'v'
    WHERE d.refclassid = t.class AND d.refobjid = t.id AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
    UNION ALL
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, p.polrelid FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_policy p ON p.oid = d.objid
    WHERE d.refclassid = t.class AND d.refobjid = t.id AND d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
    UNION ALL
    SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, k.contypid FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_constraint k ON k.oid = d.objid AND k.contypid <> 0
    WHERE d.refclassid = t.class AND d.refobjid = t.id AND d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
      AND t.class <> 'pg_catalog.pg_type'::pg_catalog.regclass
    UNION ALL
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.inhparent FROM pg_catalog.pg_inherits i
    WHERE t.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND i.inhrelid = t.id
  ) next
), bad AS MATERIALIZED (
  SELECT id FROM tainted WHERE class = 'pg_catalog.pg_proc'::pg_catalog.regclass UNION ALL SELECT oid FROM own
)
SELECT CASE WHEN pg_catalog.bool_or(b.id IS NOT NULL) THEN 'v' ELSE 's' END, p.proname
FROM pg_catalog.pg_proc p LEFT JOIN bad b ON b.id = p.oid
WHERE p.prokind <> 'p' AND p.prorettype NOT IN (2279, 3838) GROUP BY p.proname
UNION ALL
SELECT DISTINCT 't', p.proname FROM bad b JOIN pg_catalog.pg_proc p ON p.oid = b.id
JOIN pg_catalog.pg_type a ON a.oid = p.proargtypes[0]
WHERE p.oid >= 16384 AND p.pronargs - p.pronargdefaults <= 1 AND (a.typtype IN ('c', 'p', 'd') OR p.provariadic <> 0)
UNION ALL
SELECT DISTINCT 't', c.relname FROM tainted t JOIN pg_catalog.pg_class c ON c.oid = t.id
WHERE t.class = 'pg_catalog.pg_class'::pg_catalog.regclass
UNION ALL
SELECT DISTINCT 't', y.typname FROM tainted t JOIN pg_catalog.pg_type y ON y.oid = t.id
WHERE t.class = 'pg_catalog.pg_type'::pg_catalog.regclass
UNION ALL
SELECT DISTINCT 'o', o.oprname FROM tainted t JOIN pg_catalog.pg_operator o ON o.oid = t.id
WHERE t.class = 'pg_catalog.pg_operator'::pg_catalog.regclass
UNION ALL
SELECT DISTINCT CASE WHEN k.castcontext = 'i' THEN 'h' ELSE 't' END, y.typname FROM tainted t
JOIN pg_catalog.pg_cast k ON k.oid = t.id JOIN pg_catalog.pg_type y ON y.oid IN (k.castsource, k.casttarget)
WHERE t.class = 'pg_catalog.pg_cast'::pg_catalog.regclass
UNION ALL
SELECT DISTINCT CASE WHEN prorettype IN (2279, 3838) THEN 'U' ELSE 'u' END, proname FROM pg_catalog.pg_proc
WHERE oid >= 16384 AND prosrc ~* '${SESSION_BODY}'
UNION ALL
SELECT DISTINCT 'c', found[1] FROM pg_catalog.pg_proc,
  pg_catalog.regexp_matches(prosrc, 'set_config\\s*\\(\\s*''([^'']+)''', 'gi') found WHERE oid >= 16384`;

/** The answer to CATALOGUE_QUERY, rows as texts in the database's order of columns. */
export function parseCatalogue(rows: readonly (readonly (string | null)[])[]): Catalogue {
  const safeFunctions = new Set<string>();
  const volatileFunctions = new Set<string>();
  const taintedRelations = new Set<string>();
  const volatileOperators = new Set<string>();
  const sessionFunctions = new Set<string>();
  const customSettings = new Set<string>();
  let sessionTriggers = false;
  let guardEverything = false;
  for (const [kind, name] of rows) {
    if (typeof name !== 'string') continue;
    if (kind === 's') safeFunctions.add(name);
    else if (kind === 'v') volatileFunctions.add(name);
    else if (kind === 't') taintedRelations.add(name);
    else if (kind === 'o') volatileOperators.add(name);
    else if (kind === 'u') sessionFunctions.add(name);
    else if (kind === 'U') sessionTriggers = true;
    else if (kind === 'c') customSettings.add(name.toLowerCase());
    else guardEverything = true;
  }
  for (const name of volatileFunctions) safeFunctions.delete(name);
  for (const symbol of volatileOperators) if (IMPLICIT_OPERATORS.has(symbol)) guardEverything = true;
  return Object.freeze({
    safeFunctions,
    volatileFunctions,
    taintedRelations,
    volatileOperators,
    sessionFunctions,
    sessionTriggers,
    customSettings,
    taintedBeyondAscii: [...taintedRelations].some((name) => !isAscii(name)),
    guardEverything,
  });
}

function isAscii(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) > 0x7f) return false;
  return true;
}

/** Verbs that run a query; the other reads (SHOW, FETCH, LOCK, ...) call nothing by name. */
const QUERIES: ReadonlySet<string> = new Set(['SELECT', 'VALUES', 'TABLE', 'COPY', 'DECLARE', 'EXPLAIN']);

/**
 * Whether the statement can neither leave anything durable behind nor do harm when it is repeated: it needs no guard. True
 * only for the effects read, copyOut and cursor (DECLARE); session effects are the caller's to know.
 */
export function isPlainRead(facts: StatementFacts, catalogue: Catalogue): boolean {
  const { effect } = facts;
  if (effect !== 'read' && effect !== 'copyOut' && effect !== 'cursor') return false;
  if (facts.hasModifyingCte || facts.selectInto) return false;
  if (!QUERIES.has(facts.verb)) return true;
  // Planning calls no volatile function.
  if (facts.verb === 'EXPLAIN' && !facts.explainAnalyze) return true;
  if (effect === 'cursor' && facts.inner?.effect !== 'read') return false;
  if (catalogue.guardEverything) return false;
  for (const name of facts.functions) {
    if (catalogue.volatileFunctions.has(name)) return false;
    if (!catalogue.safeFunctions.has(name) && !RECENT_FORMS.has(name)) return false;
    if (facts.uncertainNames && !isAscii(name)) return false;
  }
  if (facts.uncertainNames && catalogue.taintedBeyondAscii) return false;
  for (const name of facts.names) {
    if (catalogue.taintedRelations.has(name)) return false;
    // Functions in the temporary schema belong to one session alone, and are found only with the schema's name.
    if (name.startsWith('pg_temp') && facts.functions.length > 0) return false;
  }
  for (const symbol of facts.operators) if (catalogue.volatileOperators.has(symbol)) return false;
  return true;
}
