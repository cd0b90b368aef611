"""The policies that come with hwsim, plug-ins without privileges: one file a policy, named as the policy is."""
