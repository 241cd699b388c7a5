import { badJson, invalidParam, MatrixError, missingParam, notFound, tooLarge } from '../errors.ts';
import type { JsonObject, JsonValue } from '../event.ts';
import { decodeJson } from '../json.ts';
import { localpartOf, MAX_PATTERN_LENGTH } from './conditions.ts';
import { DEFAULT_RULES, MASTER_RULE } from './default-rules.ts';
import type { Action, DefaultRule, PushCondition, PushRule, RuleKind, Ruleset } from './rules.ts';
import { RULE_KINDS } from './rules.ts';

/** What a user changed of the predefined rules. Immutable. */
export interface PushRuleChanges {
  /** The user's own rules. */
  readonly rules: Ruleset;
  /** Predefined rules by `ruleKey` that were enabled or disabled. */
  readonly enabled: ReadonlyMap<string, boolean>;
  /** Predefined rules by `ruleKey` whose actions were changed. */
  readonly actions: ReadonlyMap<string, readonly Action[]>;
}

export const NO_CHANGES: PushRuleChanges = {
  rules: { override: [], content: [], postcontent: [], room: [], sender: [], underride: [] },
  enabled: new Map(),
  actions: new Map(),
};

/** A user's own rules, of all kinds together. */
const MAX_RULES = 1000;
const MAX_CONDITIONS = 50;
const MAX_ACTIONS = 20;
const MAX_RULE_ID_LENGTH = 512;

export function ruleKey(kind: RuleKind, ruleId: string): string {
  return `${kind}/${ruleId}`;
}

/** All rules in force, as clients see them. */
export function rulesetOf(userId: string, changes: PushRuleChanges): Ruleset {
  const ruleset: Record<RuleKind, PushRule[]> = {
    override: [showDefault('override', MASTER_RULE, userId, changes)],
    content: [],
    postcontent: [],
    room: [],
    sender: [],
    underride: [],
  };
  for (const kind of RULE_KINDS) {
    ruleset[kind].push(...changes.rules[kind]);
    for (const rule of DEFAULT_RULES[kind]) ruleset[kind].push(showDefault(kind, rule, userId, changes));
  }
  return ruleset;
}

function showDefault(kind: RuleKind, rule: DefaultRule, userId: string, changes: PushRuleChanges): PushRule {
  const key = ruleKey(kind, rule.rule_id);
  return {
    rule_id: rule.rule_id,
    default: true,
    enabled: changes.enabled.get(key) ?? rule.enabled ?? true,
    ...(rule.conditions && {
      conditions: rule.conditions.map(({ pattern_type, value_type, ...condition }) => ({
        ...condition,
        ...(pattern_type && { pattern: userId }),
        ...(value_type && { value: userId }),
      })),
    }),
    ...(rule.pattern_type && { pattern: localpartOf(userId) }),
    actions: changes.actions.get(key) ?? rule.actions,
  };
}

function defaultRule(kind: RuleKind, ruleId: string): DefaultRule | undefined {
  if (kind === 'override' && ruleId === MASTER_RULE.rule_id) return MASTER_RULE;
  return DEFAULT_RULES[kind].find((rule) => rule.rule_id === ruleId);
}

/** @throws M_NOT_FOUND */
export function ruleOf(userId: string, changes: PushRuleChanges, kind: RuleKind, ruleId: string): PushRule {
  const own = changes.rules[kind].find((rule) => rule.rule_id === ruleId);
  if (own) return own;
  const rule = defaultRule(kind, ruleId);
  if (!rule) throw ruleNotFound();
  return showDefault(kind, rule, userId, changes);
}

/** Beside which of the user's own rules a rule is to stand; `before` wins. */
export interface RulePlace {
  readonly before?: string;
  readonly after?: string;
}

/**
 * Adds a rule or changes it, by the body of the request.
 *
 * @throws M_INVALID_PARAM, M_MISSING_PARAM, M_BAD_JSON, M_TOO_LARGE; M_UNKNOWN when `place` names no rule
 */
export function putRule(
  changes: PushRuleChanges,
  kind: RuleKind,
  ruleId: string,
  body: JsonObject,
  place: RulePlace = {},
): PushRuleChanges {
  checkRuleId(ruleId);
  if (kind === 'postcontent') throw invalidParam('Rules of this kind are predefined (MSC4306)');
  const old = changes.rules[kind].find((rule) => rule.rule_id === ruleId);
  const count = RULE_KINDS.reduce((sum, each) => sum + changes.rules[each].length, 0);
  if (!old && count >= MAX_RULES) throw tooLarge(`No more than ${MAX_RULES} push rules can be kept`);
  const rule: PushRule = {
    rule_id: ruleId,
    default: false,
    enabled: old?.enabled ?? true,
    ...matcherOf(kind, body),
    actions: checkActions(body.actions),
  };
  return withRules(changes, kind, placed(changes.rules[kind], rule, place));
}

function placed(rules: readonly PushRule[], rule: PushRule, { before, after }: RulePlace): PushRule[] {
  const list = [...rules];
  const old = list.findIndex(({ rule_id }) => rule_id === rule.rule_id);
  const indexOf = (ruleId: string) => {
    if (ruleId.startsWith('.')) throw invalidParam('A rule cannot be placed beside a predefined rule');
    const at = list.findIndex(({ rule_id }) => rule_id === ruleId);
    if (at < 0) throw new MatrixError(400, 'M_UNKNOWN', `before/after rule not found: ${ruleId}`);
    return at;
  };
  for (const neighbour of [before, after]) if (neighbour !== undefined) indexOf(neighbour);
  const beside = [before, after].find((neighbour) => neighbour !== undefined && neighbour !== rule.rule_id);
  if (beside === undefined) {
    if (old >= 0) list[old] = rule;
    else list.unshift(rule);
    return list;
  }
  if (old >= 0) list.splice(old, 1);
  list.splice(indexOf(beside) + (beside === before ? 0 : 1), 0, rule);
  return list;
}

function checkRuleId(ruleId: string): void {
  if (ruleId === '' || ruleId.length > MAX_RULE_ID_LENGTH)
    throw invalidParam('The rule id is empty or too long');
  if (ruleId.startsWith('.')) throw invalidParam('Rule ids that begin with a dot are reserved');
  if (/[/\\]/.test(ruleId)) throw invalidParam('Rule ids hold no slashes or backslashes');
}

function matcherOf(kind: RuleKind, body: JsonObject): Pick<PushRule, 'pattern' | 'conditions'> {
  switch (kind) {
    case 'content':
      if (body.pattern === undefined) throw missingParam('A content rule needs a pattern');
      if (typeof body.pattern !== 'string') throw badJson('pattern must be a string');
      if (body.pattern.length > MAX_PATTERN_LENGTH) throw tooLarge('The pattern is too long');
      return { pattern: body.pattern };
    case 'override':
    case 'underride':
      return { conditions: checkConditions(body.conditions ?? []) };
    default:
      return {};
  }
}

function checkConditions(conditions: JsonValue): PushCondition[] {
  if (!Array.isArray(conditions)) throw badJson('conditions must be an array');
  if (conditions.length > MAX_CONDITIONS) throw tooLarge('The rule has too many conditions');
  return conditions.map((condition) => {
    if (!isObject(condition) || typeof condition.kind !== 'string')
      throw badJson('A condition must be an object with a kind');
    if (typeof condition.pattern === 'string' && condition.pattern.length > MAX_PATTERN_LENGTH)
      throw tooLarge('The pattern is too long');
    return condition as JsonObject & { kind: string };
  });
}

/** @throws M_MISSING_PARAM, M_BAD_JSON, M_TOO_LARGE */
export function checkActions(actions: JsonValue | undefined): Action[] {
  if (actions === undefined) throw missingParam('A rule needs actions');
  if (!Array.isArray(actions)) throw badJson('actions must be an array');
  if (actions.length > MAX_ACTIONS) throw tooLarge('The rule has too many actions');
  return actions.map((action) => {
    if (action === 'notify' || action === 'dont_notify' || action === 'coalesce') return action;
    if (isObject(action) && typeof action.set_tweak === 'string')
      return action as JsonObject & { set_tweak: string };
    throw badJson('Unrecognised action');
  });
}

/** @throws M_NOT_FOUND, also for predefined rules, which stay */
export function deleteRule(changes: PushRuleChanges, kind: RuleKind, ruleId: string): PushRuleChanges {
  const rules = changes.rules[kind].filter((rule) => rule.rule_id !== ruleId);
  if (rules.length === changes.rules[kind].length) throw ruleNotFound();
  return withRules(changes, kind, rules);
}

/** @throws M_NOT_FOUND */
export function setEnabled(
  changes: PushRuleChanges,
  kind: RuleKind,
  ruleId: string,
  enabled: boolean,
): PushRuleChanges {
  if (defaultRule(kind, ruleId))
    return { ...changes, enabled: new Map(changes.enabled).set(ruleKey(kind, ruleId), enabled) };
  return changeOwn(changes, kind, ruleId, { enabled });
}

/** @throws M_NOT_FOUND */
export function setActions(
  changes: PushRuleChanges,
  kind: RuleKind,
  ruleId: string,
  actions: readonly Action[],
): PushRuleChanges {
  if (defaultRule(kind, ruleId))
    return { ...changes, actions: new Map(changes.actions).set(ruleKey(kind, ruleId), actions) };
  return changeOwn(changes, kind, ruleId, { actions });
}

/**
 * Gives rules about a room a copy about the room that replaced it: `room` rules, and rules with a condition on the
 * room's id, which is how clients mute rooms.
 */
export function copyRoomRules(changes: PushRuleChanges, oldRoom: string, newRoom: string): PushRuleChanges {
  let copied = changes;
  for (const kind of ['override', 'room', 'underride'] as const) {
    const copies: PushRule[] = [];
    for (const rule of changes.rules[kind]) {
      const isAbout = kind === 'room' ? rule.rule_id === oldRoom : rule.conditions?.some(isOnRoom(oldRoom));
      if (!isAbout) continue;
      const ruleId = rule.rule_id.includes(oldRoom) ? rule.rule_id.replace(oldRoom, () => newRoom) : newRoom;
      if ([...changes.rules[kind], ...copies].some(({ rule_id }) => rule_id === ruleId)) continue;
      const conditions = rule.conditions?.map((condition) =>
        isOnRoom(oldRoom)(condition) ? { ...condition, pattern: newRoom } : condition,
      );
      copies.push({ ...rule, rule_id: ruleId, ...(conditions && { conditions }) });
    }
    if (copies.length > 0) copied = withRules(copied, kind, [...copies, ...changes.rules[kind]]);
  }
  return copied;
}

function isOnRoom(roomId: string): (condition: PushCondition) => boolean {
  return ({ kind, key, pattern }) => kind === 'event_match' && key === 'room_id' && pattern === roomId;
}

function changeOwn(
  changes: PushRuleChanges,
  kind: RuleKind,
  ruleId: string,
  change: Partial<PushRule>,
): PushRuleChanges {
  if (!changes.rules[kind].some((rule) => rule.rule_id === ruleId)) throw ruleNotFound();
  const rules = changes.rules[kind].map((rule) => (rule.rule_id === ruleId ? { ...rule, ...change } : rule));
  return withRules(changes, kind, rules);
}

function withRules(changes: PushRuleChanges, kind: RuleKind, rules: readonly PushRule[]): PushRuleChanges {
  return { ...changes, rules: { ...changes.rules, [kind]: rules } };
}

function ruleNotFound(): MatrixError {
  return notFound('The push rule was not found.');
}

function isObject(value: JsonValue): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The changes as text to be kept. */
export function changesToJson({ rules, enabled, actions }: PushRuleChanges): string {
  return JSON.stringify({ rules, enabled: [...enabled], actions: [...actions] });
}

/** Reads what `changesToJson` wrote. */
export function changesFromJson(json: string): PushRuleChanges {
  const { rules, enabled, actions } = decodeJson(json) as {
    rules: Ruleset;
    enabled: Array<[string, boolean]>;
    actions: Array<[string, Action[]]>;
  };
  // What was stored before there were as many kinds lacks some.
  return { rules: { ...NO_CHANGES.rules, ...rules }, enabled: new Map(enabled), actions: new Map(actions) };
}
