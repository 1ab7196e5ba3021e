"""Tasks of the policy-gradient loop.

task      the interface of a task (prompts, rewards, evaluation), and sampling of answers
verdicts  trains a judge: rewards right verdicts
rewrites  trains a rewriter: rewards by a judge
prompts   trains a policy: rewards by a reward model, a judge, the check of answers, or functions
          of your own
problems  the prompts, rewards and figures of problems with answers, for `prompts`
thinking  trains a policy to think: rewards by what it writes, or expects, after a thought
"""
